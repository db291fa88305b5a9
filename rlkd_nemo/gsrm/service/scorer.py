"""The trainer's scorer when the structure reward is a service: outcome, format and tag stay here.

When the service fails for more rollouts than may fail, training pauses: the failed ones are asked for again until they
have a score or `gsrm.service.pause_s` is over. What is left then is missing, never 0, and the trainer stops.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Protocol

from rlkd_nemo.config.schema import Gsrm, Reward
from rlkd_nemo.gsrm import audit
from rlkd_nemo.gsrm.service.core import Item, Result
from rlkd_nemo.interfaces import Task
from rlkd_nemo.lifecycle.watchdog import mark
from rlkd_nemo.rewards.blend import blend
from rlkd_nemo.rewards.format import form, tags
from rlkd_nemo.rewards.outcome import outcome
from rlkd_nemo.types import Component, Failure, Rollout, Score

log = logging.getLogger(__name__)
_LONGEST_WAIT_S = 15.0
_POLL_S = 0.1
_MARK_S = 2.0


class StructureClient(Protocol):
    """What the scorer asks of `GsrmClient`."""

    def submit(self, items: Sequence[Item]) -> concurrent.futures.Future[list[Result]]:
        """Begin to score."""


class ServiceScorer:
    """Implements `interfaces.Scorer`.

    Args:
        max_failed_fraction: `rlkd.max_failed_fraction`; more failures than that pause the training.
        stop_requested: has this process been told to stop? It ends a pause.
    """

    def __init__(
        self,
        task: Task,
        reward_cfg: Reward,
        gsrm_cfg: Gsrm,
        client: StructureClient,
        *,
        max_failed_fraction: float,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        self.task, self.gsrm, self.client = task, gsrm_cfg, client
        weights = asdict(reward_cfg)
        self.structure_only_if_correct = bool(weights.pop("structure_only_if_correct"))
        self.weights: dict[str, float] = weights
        self.max_failed_fraction, self.stop_requested = max_failed_fraction, stop_requested
        self.paused_s = 0.0

    def begin(self, rollouts: Sequence[Rollout]) -> None:
        """Ask for rollouts that will be scored soon, and wait for nothing: the server has them by then, or works on them."""
        items = [item for item in map(self._item, rollouts) if item is not None]
        if items:
            self.client.submit(items)

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score a rollout, in order; the other components are computed while the service works."""
        items = {row: item for row, rollout in enumerate(rollouts) if (item := self._item(rollout)) is not None}
        future = self.client.submit(list({item.id: item for item in items.values()}.values()))
        parts: list[dict[str, Component]] = [
            {"outcome": outcome(self.task, rollout), "format": form(rollout), "tag": tags(rollout)}
            for rollout in rollouts
        ]
        results = {result.id: result for result in awaited(future)}
        self._insist(list({item.id: item for item in items.values()}.values()), results)
        for row, rollout in enumerate(rollouts):
            if row in items:
                parts[row]["structure"] = component(results[items[row].id])
            elif self.weights["structure"]:
                parts[row]["structure"] = Component(
                    None, Failure.REFERENCE_MISSING, {"error": f"problem {rollout.problem.id} has no teacher path"}
                )
        return [Score(each, blend(each, self.weights, self.structure_only_if_correct)) for each in parts]

    def probe(self, step: int, rollouts: Sequence[Rollout], scores: Sequence[Score]) -> dict[str, float]:
        """Every `gsrm.service.probe_interval` steps, `audit/...` metrics of probes with a known answer; else nothing."""
        interval = self.gsrm.service.probe_interval
        if not interval or step % interval:
            return {}
        made = audit.probes(rollouts, scores, self.gsrm.service.probes)
        items = [
            Item(f"probe-{step}-{n}-{probe.kind}", probe.problem, probe.response, (probe.reference,))
            for n, probe in enumerate(made)
        ]
        results = awaited(self.client.submit(items))
        matched = [(r.matched, len(r.teacher_steps)) if r.status == "ok" else None for r in results]
        metrics = audit.verdict(made, matched, scores)
        for alarm in audit.ALARMS:
            if alarm.metric in metrics and alarm.rings(metrics[alarm.metric]):
                log.warning("%s=%.3g, wanted %s: %s", alarm.metric, metrics[alarm.metric], alarm.bounds, alarm.says)
        return metrics

    def _item(self, rollout: Rollout) -> Item | None:
        """None without a teacher path. The id names the content, so that asking twice is asking once."""
        problem = rollout.problem
        paths = problem.teacher_paths[:1] if self.gsrm.reference_mode == "first" else problem.teacher_paths
        if not paths:
            return None
        digest = hashlib.sha256(rollout.text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        item_id = f"{problem.id[:64]}-{digest}"
        # A prompt file's own key picks the prompt; without it the server's default does.
        domain = problem.extra.get("domain")
        return Item(item_id, problem.prompt, rollout.text, tuple(paths), domain if isinstance(domain, str) else None)

    def _insist(self, items: Sequence[Item], results: dict[str, Result]) -> None:
        """Ask again for what failed, as long as too much has."""
        started, wait = time.monotonic(), 1.0
        while True:
            failed = [item for item in items if _again(results[item.id])]
            if len(failed) <= self.max_failed_fraction * len(items):
                break
            spent = time.monotonic() - started
            kinds = Counter(str(results[item.id].failure.value) for item in failed)  # type: ignore[union-attr]
            told = ", ".join(f"{kind} x {count}" for kind, count in kinds.most_common())
            if spent >= self.gsrm.service.pause_s or self.stop_requested():
                log.error(
                    "no score for %d of %d rollouts after %.0f s of waiting (%s)", len(failed), len(items), spent, told
                )
                break
            log.warning(
                "training is paused: the GSRM service failed for %d of %d rollouts (%s; for example %s). They are asked for "
                "again in %.0f s, for up to gsrm.service.pause_s=%g s in all",
                len(failed), len(items), told, results[failed[0].id].error, wait, self.gsrm.service.pause_s,
            )  # fmt: skip
            until = min(time.monotonic() + wait, started + self.gsrm.service.pause_s)
            while time.monotonic() < until and not self.stop_requested():
                mark("paused for the GSRM service")
                time.sleep(min(_POLL_S, max(until - time.monotonic(), 0.0)))
            wait = min(2 * wait, _LONGEST_WAIT_S)
            results |= {result.id: result for result in awaited(self.client.submit(failed))}
        spent = time.monotonic() - started
        if spent > 1.0:
            self.paused_s += spent
            log.warning("the pause is over after %.0f s", spent)


def awaited(future: concurrent.futures.Future[list[Result]]) -> list[Result]:
    """The client's results. Its own deadlines bound the wait, so waiting here counts as getting on."""
    while not concurrent.futures.wait([future], timeout=_MARK_S).done:
        mark("waiting for the GSRM service")
    return future.result()


def component(result: Result) -> Component:
    """A result as a reward component, with the detail that the embedded scorer gives and the service's own."""
    if result.status == "failed":
        return Component(None, result.failure, {"stage": "service", **result.detail, "error": result.error})
    return Component(
        result.reward,
        result.failure,
        {
            "weights": [step.get("weight") for step in result.steps],
            **result.detail,
            "student_steps": list(result.student_steps),
            "teacher_steps": list(result.teacher_steps),
            "matched": result.matched,
            "verdicts": [dict(step) for step in result.steps],
        },
    )


def _again(result: Result) -> bool:
    """May the same item have a score later? Not where the request is refused or the reference has nothing to compare."""
    return (
        result.status == "failed" and result.failure is not Failure.REFERENCE_MISSING and not result.detail.get("final")
    )
