"""A core without models: the same rules that the embedded scorer applies, behind the server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rlkd_nemo.config.schema import Gsrm
from rlkd_nemo.gsrm import decompose
from rlkd_nemo.gsrm import judge as judges
from rlkd_nemo.gsrm.references import ReferenceStore
from rlkd_nemo.gsrm.service.core import BackendState, Item, Result
from rlkd_nemo.rewards.structure import StructureReward
from rlkd_nemo.types import Component, Notation, Problem, Rollout, Step

# Long texts take the parser milliseconds: the server's loop must not wait for them.
THREADS = 2


class RulesCore:
    """`ScoringCore` for `gsrm.decomposer: text` with a judge by rules.

    Args: notation: the task's own way of writing steps; None: tags only.   store_dir: decomposed references.
    """

    def __init__(self, settings: Gsrm, notation: Notation | None, store_dir: str | Path) -> None:
        self.decomposer = decompose.build(settings.decomposer, notation)
        self.judge = judges.build(settings.judge)
        self.store = ReferenceStore(store_dir)
        self.structure = StructureReward(self.decomposer, self.judge, self.store, settings)
        self.version = (
            f"rules-1 {self.decomposer.version} {self.judge.name} {settings.reference_mode} {settings.alignment} "
            f"{settings.norm}"
        )
        self._threads = ThreadPoolExecutor(THREADS, "gsrm-rules")

    async def start(self) -> None:
        """Nothing to reach."""

    async def score(self, item: Item, *, deadline_s: float) -> Result:
        """The embedded scorer's structure component as a result; there is nothing to wait for."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._score, item)

    async def decompose(self, problem: str, text: str, domain: str | None = None) -> list[Step]:
        """Steps of a reference, kept in the store."""
        work = asyncio.get_running_loop().run_in_executor
        return await work(self._threads, self.store.steps, problem, text, self.decomposer)

    def backends(self) -> list[BackendState]:
        """None: rules are always there."""
        return []

    def unavailable(self) -> str | None:
        """Never."""
        return None

    async def aclose(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)

    def _score(self, item: Item) -> Result:
        problem = Problem(item.id, item.problem, "", item.references)
        part = self.structure(Rollout(problem, 0, 0, [], [], [], item.response, False, 0, 1.0))
        return result_of(item.id, part)


def result_of(item_id: str, part: Component) -> Result:
    """A structure component of the embedded scorer as a result."""
    detail: Mapping = part.detail
    if part.value is None:
        return Result(item_id, "failed", None, failure=part.failure, error=detail.get("error"))
    weights = detail.get("weights", [])
    verdicts = detail.get("verdicts", [])
    rest = {key: detail[key] for key in ("reference", "parts_at") if key in detail}
    return Result(
        item_id,
        "ok",
        part.value,
        detail.get("matched", 0),
        tuple(detail["student_steps"]),
        tuple(detail["teacher_steps"]),
        tuple({**verdict, "weight": _weight(verdict)} for verdict in verdicts),
        part.failure,
        detail={**rest, "n_teacher": len(detail["teacher_steps"]), "student_complete": True, "weights": weights},
    )


def _weight(verdict: Mapping) -> float:
    return 0.5 ** ((verdict["question"] is False) + (verdict["answer"] is False)) if verdict["meta"] else 0.0
