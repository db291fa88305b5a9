"""What the server asks of whatever scores, and what it gets back: items in, results out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from rlkd_nemo.types import Failure, Step


@dataclass(frozen=True)
class Item:
    """One response to score.

    Attributes:
        id: the caller's name for it; the result carries it.
        references: reference responses, best first, the whole text of each.
        domain: picks the prompt: math, code, puzzle, any other: science; None: the configured one.
    """

    id: str
    problem: str
    response: str
    references: tuple[str, ...]
    domain: str | None = None


@dataclass(frozen=True)
class Result:
    """A structure reward, or the reason why there is none.

    As in `rlkd_nemo.types.Component`: no reward if and only if the system failed. A student's own failure is status
    `ok` with reward 0 and its `failure`.

    Attributes:
        matched: steps whose meta-reasoning agrees.
        student_steps / teacher_steps: what was compared; a student's list that lazy scoring cut short ends where its
            generation was cancelled (`detail["student_complete"]` is False then).
        steps: one verdict a comparison: student and teacher (indices), meta, question, answer (None: not compared) and
            weight; with prefix alignment the mismatch that ended the match is the last one.
        error: the failure in words.
        detail: reference (index), n_teacher, parts_at, student_complete, raw replies; kept in the audit.
    """

    id: str
    status: Literal["ok", "failed"]
    reward: float | None
    matched: int = 0
    student_steps: tuple[Step, ...] = ()
    teacher_steps: tuple[Step, ...] = ()
    steps: tuple[Mapping[str, Any], ...] = ()
    failure: Failure | None = None
    error: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        by_system = self.failure is not None and self.failure.by_system
        if not by_system == (self.reward is None) == (self.status == "failed"):
            raise ValueError(
                f"Result(status={self.status!r}, reward={self.reward}, failure={self.failure}): failed and without "
                "reward if and only if the system failed"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; the failure by its name."""
        return {**asdict(self), "failure": self.failure.value if self.failure else None}


@dataclass(frozen=True)
class BackendState:
    """One endpoint as it is now, for /ready and /metrics.

    Attributes:
        role: decomposer or judge.   name: its address and model.
        breaker: closed (in use), half_open (one request tries it) or open (left alone for `retry_after_s`).
        counters: calls, failures, retries, cancelled, prompt_tokens, completion_tokens; only ever grow.
    """

    role: str
    name: str
    breaker: Literal["closed", "half_open", "open"]
    retry_after_s: float
    in_flight: int
    counters: Mapping[str, int]


class ScoringCore(Protocol):
    """Scores items one by one, many at a time."""

    @property
    def version(self) -> str:
        """Names everything that a result depends on but the item: models, prompts, rules. It keys what is stored."""

    async def start(self) -> None:
        """Reach the backends, check their models and what they can constrain. Raises ConfigError or ServiceError."""

    async def score(self, item: Item, *, deadline_s: float) -> Result:
        """The result of `item`, at the latest after `deadline_s` seconds (then a timeout).

        A backend that fails is a typed failure in the result; a fault of the program is raised.
        """

    async def decompose(self, problem: str, text: str, domain: str | None = None) -> list[Step]:
        """Steps of a reference, from the store where they are there. Raises ServiceError or TimeoutError."""

    def backends(self) -> list[BackendState]:
        """Every endpoint; empty where none is used."""

    def unavailable(self) -> str | None:
        """Why nothing can be scored now (every backend of a role is open); None when something can."""

    async def aclose(self) -> None:
        """Close connections and worker processes; what is in flight is cancelled."""
