"""Does the student reason as the reference does? The structure reward of a rollout, or the reason why it has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rlkd_nemo.config.schema import Gsrm
from rlkd_nemo.errors import ConfigError, ServiceError
from rlkd_nemo.gsrm.alignment import StructureResult, check_names, structure_reward
from rlkd_nemo.gsrm.references import ReferenceStore
from rlkd_nemo.gsrm.tree import tree_reward
from rlkd_nemo.interfaces import Decomposer, Judge
from rlkd_nemo.types import Component, Failure, Rollout, Step

REFERENCE_MODES = ("first", "best", "tree")
# What a decomposer or a judge may fail with; anything else is a fault of the program and is raised.
SERVICE_ERRORS = (ServiceError, TimeoutError, ConnectionError)


class StructureReward:
    """Scores rollouts against their problem's teacher paths.

    Args: settings: `reference_mode` first (one reference, the paper), best (largest reward over all) or tree (merged).
    Raises: ConfigError for names that do not exist or do not go together.
    """

    def __init__(self, decomposer: Decomposer, judge: Judge, store: ReferenceStore, settings: Gsrm) -> None:
        check_names(settings.norm, settings.alignment)
        mode = settings.reference_mode
        if mode not in REFERENCE_MODES:
            raise ConfigError(f"gsrm.reference_mode={mode!r} is unknown; wanted one of {', '.join(REFERENCE_MODES)}")
        if mode == "tree" and (settings.alignment != "prefix" or settings.norm == "max"):
            raise ConfigError(
                f"gsrm.reference_mode=tree with alignment={settings.alignment}, norm={settings.norm}; "
                "wanted alignment=prefix and norm=teacher or none, or reference_mode=best"
            )
        self.decomposer, self.judge, self.store, self.settings = decomposer, judge, store, settings

    def __call__(self, rollout: Rollout) -> Component:
        """The component, with steps and verdicts in its detail.

        A student without steps scores 0 (unparseable_student); a missing or step-less reference and every failure of
        decomposer or judge give no value. A truncated response is scored on the steps it has.
        """
        prompt, paths = rollout.problem.prompt, rollout.problem.teacher_paths
        if self.settings.reference_mode == "first":
            paths = paths[:1]
        if not paths:
            return Component(None, Failure.REFERENCE_MISSING, {"error": "the problem has no teacher path"})
        try:
            references = [self.store.steps(prompt, path, self.decomposer) for path in paths]
        except SERVICE_ERRORS as error:
            return _failed(error, Failure.DECOMPOSER_FAILED, "teacher")
        if not all(references):
            number = next(i for i, steps in enumerate(references) if not steps)
            return Component(None, Failure.REFERENCE_MISSING, {"error": f"no step was found in teacher path {number}"})
        try:
            student = self.decomposer.decompose(prompt, rollout.text)
        except SERVICE_ERRORS as error:
            return _failed(error, Failure.DECOMPOSER_FAILED, "student")
        if not student:
            return Component(0.0, Failure.UNPARSEABLE_STUDENT, {"student_steps": [], "teacher_steps": references[0]})
        try:
            result, reference = self._compare(prompt, student, references)
        except SERVICE_ERRORS as error:
            return _failed(error, Failure.JUDGE_FAILED, "judge")
        return Component(
            result.reward,
            detail={
                "student_steps": student,
                "teacher_steps": references[reference],
                "reference": reference,
                "matched": result.matched,
                "weights": list(result.weights),
                "verdicts": [asdict(verdict) for verdict in result.verdicts],
                "parts_at": result.parts_at,
            },
        )

    def _compare(
        self, prompt: str, student: Sequence[Step], references: Sequence[Sequence[Step]]
    ) -> tuple[StructureResult, int]:
        """The result, and the index of the reference that it is measured against."""
        settings = self.settings
        if settings.reference_mode == "tree":
            tree = self.store.tree(prompt, references, self.judge)
            return tree_reward(student, references, tree, self.judge, settings.norm, prompt)
        results = [
            structure_reward(student, steps, self.judge, settings.norm, settings.alignment, prompt)
            for steps in references
        ]
        best = max(range(len(results)), key=lambda index: results[index].reward)
        return results[best], best


def _failed(error: Exception, otherwise: Failure, stage: str) -> Component:
    failure = otherwise
    for cause in (error, error.__cause__):
        if isinstance(cause, TimeoutError):
            failure = Failure.TIMEOUT
        elif isinstance(cause, ConnectionError):
            failure = Failure.BACKEND_UNAVAILABLE
    return Component(None, failure, {"stage": stage, "error": f"{type(error).__name__}: {error}"})
