"""How often does a structure reward from a service agree with the one by rule, on the rollouts of a run?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rlkd_nemo.config.schema import Gsrm
from rlkd_nemo.errors import InputError
from rlkd_nemo.gsrm import judge
from rlkd_nemo.gsrm.decompose import TextDecomposer
from rlkd_nemo.gsrm.references import ReferenceStore
from rlkd_nemo.interfaces import Task
from rlkd_nemo.rewards.structure import StructureReward
from rlkd_nemo.types import Problem, Rollout

_EQUAL = 1e-6


@dataclass(frozen=True)
class Agreement:
    """rollouts: all that were audited.   failed: without a reward, which count as not agreeing.
    agreement: share with the same reward.   mean_gap: mean absolute difference where there are two rewards.
    distinct: how many different rewards there are by rule: agreement on one value would say little.
    """

    rollouts: int
    failed: int
    agreement: float
    mean_gap: float
    mean_service: float
    mean_rule: float
    distinct: int

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def agreement(
    records: Iterable[Mapping[str, Any]], problems: Mapping[str, Problem], task: Task, settings: Gsrm
) -> Agreement:
    """Compare audited rollouts (report/audit.py) with the reward by rule: the task's notation and `normalised` texts.

    Args: problems: by id, all that the records name.   settings: norm, alignment and reference mode of the run.
    Raises: InputError without records, or for a problem that is not there.
    """
    pairs: list[tuple[float | None, float]] = []
    with tempfile.TemporaryDirectory() as store:
        rule = StructureReward(
            TextDecomposer(task.notation()), judge.build("normalised"), ReferenceStore(store), settings
        )
        for record in records:
            problem = problems.get(record["problem_id"])
            if problem is None:
                raise InputError(f"the audit names problem {record['problem_id']}, which the task did not give")
            value = rule(_rollout(record, problem)).value
            assert value is not None, "rules do not fail"
            pairs.append((record["components"]["structure"]["value"], value))
    if not pairs:
        raise InputError("the audit holds no rollout; wanted exp_manager.audit_rollouts=-1")
    scored = [(served, ruled) for served, ruled in pairs if served is not None]
    gaps = [abs(served - ruled) for served, ruled in scored]
    return Agreement(
        rollouts=len(pairs),
        failed=len(pairs) - len(scored),
        agreement=sum(gap <= _EQUAL for gap in gaps) / len(pairs),
        mean_gap=sum(gaps) / max(1, len(gaps)),
        mean_service=sum(served for served, _ in scored) / max(1, len(scored)),
        mean_rule=sum(ruled for _, ruled in pairs) / len(pairs),
        distinct=len({ruled for _, ruled in pairs}),
    )


def _rollout(record: Mapping[str, Any], problem: Problem) -> Rollout:
    """What a reward reads of a rollout; tokens are not kept in an audit."""
    return Rollout(
        problem=problem,
        group=record["group"],
        sample=record["sample"],
        prompt_ids=[],
        response_ids=[],
        log_probs=[],
        text=record["response"],
        truncated=record["truncated"],
        weight_version=record["weight_version"],
        temperature=1.0,
    )
