"""Protocols where the rooms meet. Embedded and remote implementations are interchangeable behind them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from rlkd_nemo.types import Notation, Problem, Rollout, Score, Step

if TYPE_CHECKING:
    import torch

    from rlkd_nemo.losses.metrics import Tally
    from rlkd_nemo.training.batch import SequenceBatch


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back. `pieces` is the contract between student and teacher: equal pieces, equal ids."""

    vocab_size: int
    eos_id: int
    pad_id: int

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, nothing added. Raises InputError on text it cannot represent."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, end-of-text and padding left out."""

    def pieces(self) -> list[str]:
        """The string of every id, in order."""


class Demonstrator(Protocol):
    """Worked examples: all that supervised training needs of a task, and what a file of rows can give as well."""

    def demonstrations(
        self, split: str, seed: int, difficulty: str, n: int, *, strategies: Sequence[str], noise: float, start: int = 0
    ) -> list[tuple[Problem, str]]:
        """As `Task.demonstrations`."""


@runtime_checkable
class Task(Protocol):
    """Problems, their verification and their canonical reasoning.

    A module `tasks/<name>.py` takes part by exporting `build(settings) -> Task`.
    """

    def generate(self, split: str, seed: int, difficulty: str, n: int, start: int = 0) -> list[Problem]:
        """Problems start..start+n of an endless stream of `split` (train, validation, test).

        Deterministic in (split, seed, difficulty); a step takes the next n by advancing `start`, which is the data
        position in a checkpoint. Different splits never share a problem id; validation and test streams are distinct
        problems until they are exhausted (then InputError).
        """

    def demonstrations(
        self, split: str, seed: int, difficulty: str, n: int, *, strategies: Sequence[str], noise: float, start: int = 0
    ) -> list[tuple[Problem, str]]:
        """Problems with one worked response each, for SFT; index `start + i` is the same whatever the batch."""

    def verify(self, problem: Problem, response: str) -> bool:
        """Does the response's final answer equal the gold answer?"""

    def symbols(self) -> list[str] | None:
        """The task's closed vocabulary (longest match wins), or None when it is free text."""

    def notation(self) -> Notation | None:
        """How the task itself writes steps, or None when its texts carry the usual tags (`gsrm.steps`)."""


class Decomposer(Protocol):
    """Reasoning text to steps. `version` names everything that its result depends on: it keys stored references."""

    version: str

    def decompose(self, problem: str, text: str) -> list[Step]:
        """Steps in order; an empty list when the text has none. Raises ServiceError when it could not be tried."""


class Judge(Protocol):
    """Decides whether two texts mean the same. `kind` is `meta`, `question` or `answer`; `name` keys what it decided."""

    name: str

    def same(self, kind: str, teacher: str, student: str, problem: str) -> bool:
        """True if both say the same. Raises ServiceError when it could not decide."""


class Scorer(Protocol):
    """Rewards for rollouts."""

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score a rollout, in order. System failures are inside the scores, never raised."""


class Teacher(Protocol):
    """Log-probs of given tokens under a frozen model."""

    def log_probs(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """For each pair, float32 [len(response)]: log-prob of each response token given all before it."""


class RolloutEngine(Protocol):
    """Samples responses from the student's weights.

    A module `rollout/<name>.py` or the embedded `engine/generate/` takes part.
    """

    def refit(self, version: int) -> None:
        """Make the sampler's weights equal the trainer's; `version` counts optimizer updates."""

    def generate(
        self,
        problems: Sequence[Problem],
        group_size: int,
        *,
        stream: tuple[Any, ...],
        temperature: float,
        max_new_tokens: int,
    ) -> list[Rollout]:
        """`group_size` responses for each problem, group-major; `stream` names the random numbers, ("train", seed, step)."""


class Actor(Protocol):
    """The student in training, as the loops use it; names follow NeMo-Aligner's life cycle. All ranks call alike."""

    updates: int  # optimizer updates so far: the weight version

    def prepare_for_training(self) -> None:
        """Enter training mode; optimizer states on the device."""

    def finish_training(self) -> None:
        """Leave training mode."""

    def prepare_for_inference(self) -> None:
        """Enter inference mode; optimizer states may leave the device."""

    def get_inference_log_probs(
        self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], *, temperature: float
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Log-probs and entropies of every response token, float32 [len(response)] a row, under the current weights."""

    def update(
        self, batch: SequenceBatch, objective: Any, *, temperature: float = 1.0, tally: Tally | None = None
    ) -> dict[str, float]:
        """One optimizer update of the loss that `objective(log_probs, mask, fields)` gives; its metrics.

        Args: tally: gets the objective's metrics with their counts of tokens as well, to be joined over updates.
        Raises: NonFiniteError before anything is stepped.
        """
