"""How bad a judge must be before an alarm of the audit rings, and how often one rings for a good judge.

The stand-in's rule judges, but says no to a share of the equal texts (`false no`) and yes to a share of the others
(`false yes`), anew for every question, as a model at another prompt would. Probes are those of gsrm/audit.py, 4 of each
kind as in training by default, on references of the demo's task and on longer ones. No endpoint is asked.

    python benchmarks/gsrm_alarms.py --out benchmarks/results/gsrm_alarms.json
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gsrm_endpoint import equal
from rlkd_nemo import tasks
from rlkd_nemo.config.schema import ExpressionsTask, GsrmService
from rlkd_nemo.gsrm import audit
from rlkd_nemo.gsrm.alignment import structure_reward
from rlkd_nemo.types import Component, Problem, Rollout, Score, Step

ROUNDS = 300
RATES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 1.0)


class Unsure:
    """Equality, wrong at the given rates."""

    def __init__(self, draw: random.Random, false_no: float, false_yes: float) -> None:
        self._draw, self._false_no, self._false_yes = draw, false_no, false_yes

    def same(self, kind: str, teacher: str, student: str, problem: str) -> bool:
        """A verdict."""
        right = equal(teacher, student)
        return right != (self._draw.random() < (self._false_no if right else self._false_yes))


def references(draw: random.Random, steps: int | None) -> list[tuple[str, list[Step]]]:
    """Four problems with the steps of a reference: the demo's, or `steps` steps that no two problems share."""
    if steps is None:
        task = tasks.build(ExpressionsTask())
        read = task.notation().decompose
        problems = task.generate("train", draw.randrange(1 << 30), "3-4", 4)
        return [(problem.prompt, read(problem.teacher_paths[0])) for problem in problems]
    return [
        (f"p{p}", [Step(f"aim {p} {i}", f"question {p} {i}", f"answer {p} {i}") for i in range(steps)])
        for p in range(4)
    ]


def one_round(
    draw: random.Random, steps: int | None, false_no: float, false_yes: float, number: int
) -> dict[str, float]:
    """The audit's metrics of one step's probes. Students follow their reference half of the way."""
    judge, rollouts, scores, known = Unsure(draw, false_no, false_yes), [], [], {}
    for place, (prompt, teacher) in enumerate(references(draw, steps)):
        known[prompt] = teacher
        student = [*teacher[: len(teacher) // 2], Step("another aim", "another question", "0")]
        known[f"student of {prompt}"] = student
        problem = Problem(prompt, prompt, "", (prompt,))
        rollouts.append(Rollout(problem, place, 0, [], [], [], f"student of {prompt}", False, 0, 1.0))
        detail = {"student_steps": student, "matched": structure_reward(student, teacher, judge).matched}
        scores.append(Score({"structure": Component(0.5, None, detail)}, 0.5))
    probes = audit.probes(rollouts, scores, number)
    matched = []
    for probe in probes:
        result = structure_reward(known[probe.response], known[probe.reference], judge)
        matched.append((result.matched, result.n_teacher))
    return audit.verdict(probes, matched, scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out")
    given = parser.parse_args()
    alarms = {alarm.metric: alarm for alarm in audit.ALARMS}
    number, rows = GsrmService().probes, []
    for length in (None, 4, 8, 16):
        for error in ("false_no", "false_yes"):
            for rate in RATES:
                draw = random.Random(f"{length} {error} {rate}")
                rates = {"false_no": 0.0, "false_yes": 0.0, error: rate}
                rounds = [one_round(draw, length, **rates, number=number) for _ in range(ROUNDS)]
                row = {"steps": length or "demo", error: rate}
                for metric in ("audit/canary_same", "audit/canary_other", "audit/order_swap_disagreement"):
                    values = [found[metric] for found in rounds if metric in found]
                    row[metric.removeprefix("audit/")] = round(sum(values) / len(values), 3)
                    row[f"{metric.removeprefix('audit/')} rings"] = round(
                        sum(map(alarms[metric].rings, values)) / len(values), 3
                    )
                rows.append(row)
                print("  ".join(f"{key} {value}" for key, value in row.items()))
    if given.out:
        bounds = {alarm.metric: alarm.bounds for alarm in audit.ALARMS}
        found = {"date": str(date.today()), "rounds": ROUNDS, "probes": number, "bounds": bounds, "rows": rows}
        Path(given.out).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
