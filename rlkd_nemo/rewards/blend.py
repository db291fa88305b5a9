"""All components of a rollout and their weighted sum: the embedded scorer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rlkd_nemo.config.schema import Gsrm, Reward
from rlkd_nemo.gsrm import decompose
from rlkd_nemo.gsrm import judge as judges
from rlkd_nemo.gsrm.references import ReferenceStore
from rlkd_nemo.interfaces import Decomposer, Judge, Task
from rlkd_nemo.rewards.format import form, tags
from rlkd_nemo.rewards.outcome import outcome
from rlkd_nemo.rewards.structure import StructureReward
from rlkd_nemo.types import Component, Rollout, Score


class EmbeddedScorer:
    """Outcome, structure, format and tag, computed in this process.

    Args:
        reward_cfg: the weight of each component, used as given, not normalised.
        store_dir: where decomposed references are kept.
        decomposer, judge: instead of those that `gsrm_cfg` names.
    Raises: ConfigError for settings that do not exist; InputError when the store cannot be created.
    """

    def __init__(
        self,
        task: Task,
        reward_cfg: Reward,
        gsrm_cfg: Gsrm,
        store_dir: str | Path,
        decomposer: Decomposer | None = None,
        judge: Judge | None = None,
    ) -> None:
        self.task = task
        weights = asdict(reward_cfg)
        self.structure_only_if_correct = bool(weights.pop("structure_only_if_correct"))
        self.weights: dict[str, float] = weights
        self.structure = StructureReward(
            decomposer or decompose.build(gsrm_cfg.decomposer, task.notation()),
            judge or judges.build(gsrm_cfg.judge),
            ReferenceStore(store_dir),
            gsrm_cfg,
        )

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score a rollout, in order; failures of the system are inside, faults of the program are raised.

        Components of weight 0 are computed as well, to be logged. Only structure at weight 0 is left out where the
        problem has no teacher path: a missing reference that nobody asked for is no failure.
        """
        return [self._score(rollout) for rollout in rollouts]

    def _score(self, rollout: Rollout) -> Score:
        components = {"outcome": outcome(self.task, rollout), "format": form(rollout), "tag": tags(rollout)}
        if self.weights["structure"] or rollout.problem.teacher_paths:
            components["structure"] = self.structure(rollout)
        return Score(components, blend(components, self.weights, self.structure_only_if_correct))


def blend(
    components: Mapping[str, Component], weights: Mapping[str, float], structure_only_if_correct: bool = False
) -> float | None:
    """Sum of weight times component; None if a component with a weight other than 0 has no value.

    Source: arXiv:2505.16142, total reward (3:3:2:2 as reported).
    Args: structure_only_if_correct: structure counts where the outcome is 1; its absence makes the row invalid anyway.
    """
    total = 0.0
    for name, weight in weights.items():
        if weight == 0:
            continue
        value = components[name].value
        if value is None:
            return None
        if name == "structure" and structure_only_if_correct and components["outcome"].value != 1.0:
            continue
        total += weight * value
    return total
