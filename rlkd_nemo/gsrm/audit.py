"""Is the structure reward still worth learning from? Probes with a known answer, and measures over what was scored.

A judge that drifts, a decomposer that echoes, or a student that games either shows here before it shows in accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlkd_nemo.types import Rollout, Score


@dataclass(frozen=True)
class Alarm:
    """A metric outside [low, high] (None: no such bound) and what that says."""

    metric: str
    title: str  # as a reader's row is named
    low: float | None
    high: float | None
    says: str

    def rings(self, value: float) -> bool:
        """Is the value outside?"""
        return (self.low is not None and value < self.low) or (self.high is not None and value > self.high)

    @property
    def bounds(self) -> str:
        """For readers: `at least 0.9`."""
        low = None if self.low is None else f"at least {self.low:g}"
        high = None if self.high is None else f"at most {self.high:g}"
        return " and ".join(bound for bound in (low, high) if bound)


# Bounds of our own choosing, for 4 probes of a kind; how often they ring at which error rate of the judge is measured by
# benchmarks/gsrm_alarms.py. References of 4 and 8 steps: a judge that errs on 1 % of the questions rings the first in 1 %
# of the probes and the third in 0 to 3 %; one that says no to 20 % of what is the same rings each in 7 to 9 of 10; one
# that says yes to 20 % of what differs rings the third in 4 of 10. The second is for a judge that agrees to anything: at
# 80 % false yes it rings in 3 to 6 of 10, at half next to never. Short references do begin alike by chance: 0.19 of the
# demo's steps do, so that a right judge rings it there in 2 to 4 of 100; a bound of 0.3 rang in 25 to 29.
ALARMS = (
    Alarm(
        "audit/canary_same",
        "References followed by themselves",
        0.75,
        None,
        "a reference is not recognised in itself: decomposer or judge has gone blind",
    ),
    Alarm(
        "audit/canary_other",
        "Another problem's reference followed",
        None,
        0.5,
        "another problem's reference counts as following: the judge says yes to anything",
    ),
    Alarm(
        "audit/order_swap_disagreement",
        "Verdicts that change with the order",
        None,
        0.3,
        "verdicts depend on which text comes first",
    ),
    Alarm(
        "audit/step_inflation",
        "Steps of responses over references",
        None,
        1.5,
        "responses have far more steps than references: padding, perhaps for reward",
    ),
    Alarm(
        "reward/structure_outcome_correlation",
        "Structure and outcome, correlation",
        -0.2,
        None,
        "the more structure, the fewer right answers",
    ),
    Alarm("reward/failed_fraction", "Rollouts without a reward", None, 0.05, "rollouts go without a reward"),
)


def step_inflation(scores: Sequence[Score]) -> dict[str, float]:
    """`audit/step_inflation`: steps of responses over steps of their references, where both are known whole.

    A response that lazy scoring cut short has no length, and is left out.
    """
    mine = theirs = 0
    for score in scores:
        detail = score.components["structure"].detail if "structure" in score.components else {}
        if detail.get("student_complete", True) and detail.get("student_steps") and detail.get("teacher_steps"):
            mine += len(detail["student_steps"])
            theirs += len(detail["teacher_steps"])
    return {"audit/step_inflation": mine / theirs} if theirs else {}


@dataclass(frozen=True)
class Probe:
    """A response to score with what is known about it. `kind`: same, other, or swap (of row `row`)."""

    kind: str
    row: int
    problem: str
    response: str
    reference: str


def probes(rollouts: Sequence[Rollout], scores: Sequence[Score], number: int) -> list[Probe]:
    """Up to `number` of each kind, from this step's problems, so that no cache knows them.

    same: a reference as the response to its own problem, which follows itself to the end. other: another problem's
    reference, which should follow next to nothing. swap: a scored rollout with response and reference exchanged, which
    matches as many steps if the verdicts do not depend on the order.
    """
    rows = {
        rollout.problem.id: row for row, rollout in reversed(list(enumerate(rollouts))) if rollout.problem.teacher_paths
    }
    heads = sorted(rows.values())
    made = []
    for place, row in enumerate(heads[:number]):
        problem = rollouts[row].problem
        made.append(Probe("same", row, problem.prompt, problem.teacher_paths[0], problem.teacher_paths[0]))
        strange = rollouts[heads[(place + 1) % len(heads)]].problem.teacher_paths[0]
        if strange != problem.teacher_paths[0]:
            made.append(Probe("other", row, problem.prompt, strange, problem.teacher_paths[0]))
    compared = [
        row
        for row, (rollout, score) in enumerate(zip(rollouts, scores))
        if rollout.problem.teacher_paths and score.components["structure"].detail.get("student_steps")
        and score.components["structure"].value is not None
    ]  # fmt: skip
    for row in compared[:number]:
        rollout = rollouts[row]
        made.append(Probe("swap", row, rollout.problem.prompt, rollout.problem.teacher_paths[0], rollout.text))
    return made


def verdict(
    probes: Sequence[Probe], matched: Sequence[tuple[int, int] | None], scores: Sequence[Score]
) -> dict[str, float]:
    """Metrics of the probes.

    Args: matched: for each probe (steps matched, steps of the reference); None where the system failed, which is counted.
    """
    shares: dict[str, list[float]] = {"same": [], "other": [], "swap": []}
    for probe, found in zip(probes, matched):
        if found is None:
            continue
        if probe.kind == "swap":
            before = scores[probe.row].components["structure"].detail.get("matched", 0)
            shares["swap"].append(float(found[0] != before))
        else:
            shares[probe.kind].append(found[0] / found[1] if found[1] else 0.0)
    names = {"same": "audit/canary_same", "other": "audit/canary_other", "swap": "audit/order_swap_disagreement"}
    out = {names[kind]: sum(values) / len(values) for kind, values in shares.items() if values}
    out["audit/probes_failed"] = float(sum(found is None for found in matched))
    return out
