"""What flows through a step: problems, rollouts, reasoning steps, reward components and scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One task instance.

    Attributes:
        id: content hash, equal for equal problems; splits are disjoint in it.
        prompt: text the student continues, up to and including any opening tag the task gives away.
        answer: the gold answer, as `Task.verify` expects it.
        teacher_paths: reference responses (the whole text after the prompt), best first; may be empty.
        difficulty: the task's own level.
    """

    id: str
    prompt: str
    answer: str
    teacher_paths: tuple[str, ...] = ()
    difficulty: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One reasoning step: meta-reasoning M, sub-problem Q, answer A (arXiv:2505.16142).

    A field the text did not give is None, so that later pairs do not shift.
    """

    meta: str
    question: str | None = None
    answer: str | None = None


@dataclass(frozen=True)
class Notation:
    """A task's own way of writing steps down, beside the tags that every task may use.

    Attributes:
        name: changes whenever `decompose` reads a text differently, since stored references carry it.
        decompose: text of a response to its steps; empty when it has none in this notation.
    """

    name: str
    decompose: Callable[[str], list[Step]]


@dataclass
class Rollout:
    """One sampled response of the student.

    Attributes:
        problem: what was asked.
        group: index of the prompt within the step; rollouts of one group share it.
        sample: index within the group.
        prompt_ids / response_ids: token ids; the end-of-text token is part of the response.
        log_probs: the sampler's log-prob of each response token, nats, at `temperature`.
        text: the decoded response without the end-of-text token.
        truncated: True when max_new_tokens ended it.
        weight_version: optimizer updates behind the weights that sampled it.
    """

    problem: Problem
    group: int
    sample: int
    prompt_ids: list[int]
    response_ids: list[int]
    log_probs: list[float]
    text: str
    truncated: bool
    weight_version: int
    temperature: float


class Failure(str, Enum):
    """Why a reward component has no full value. The student's own failures score 0; the system's have no value."""

    UNPARSEABLE_STUDENT = "unparseable_student"
    TRUNCATED = "truncated"
    REFERENCE_MISSING = "reference_missing"
    DECOMPOSER_FAILED = "decomposer_failed"
    JUDGE_FAILED = "judge_failed"
    TIMEOUT = "timeout"
    BACKEND_UNAVAILABLE = "backend_unavailable"

    @property
    def by_system(self) -> bool:
        """True when the student is not to blame, so that the rollout must not be scored."""
        return self not in (Failure.UNPARSEABLE_STUDENT, Failure.TRUNCATED)


@dataclass(frozen=True)
class Component:
    """One part of the reward: a value on its own scale, or None with a failure of the system.

    `detail` is kept in the rollout audit (steps, verdicts, raw replies).
    """

    value: float | None
    failure: Failure | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = self.failure is not None and self.failure.by_system
        if missing != (self.value is None):
            raise ValueError(
                f"Component(value={self.value}, failure={self.failure}): no value if and only if the system failed"
            )


@dataclass(frozen=True)
class Score:
    """All components of one rollout's reward; `reward` is None when a weighted component has no value."""

    components: Mapping[str, Component]
    reward: float | None

    @property
    def valid(self) -> bool:
        """True when the rollout may vote in its group's statistics and in the loss."""
        return self.reward is not None
