"""The exception tree. Each message says what is wrong, what was found, what was wanted and which key to change.

RlkdError
├── ConfigError          a setting, or two that contradict each other          exit code 2
├── InputError           a file or checkpoint that the user gave               exit code 2
│   ├── PromptFileError  lines of a prompt file, all of the bad ones
│   └── CheckpointError  missing, of another shape, or unreadable
│       └── DamagedCheckpointError  its files are not what was written
├── ShapeError           tensors that do not belong together
├── NonFiniteError       NaN or infinity in a loss or a gradient
├── GateError            a check before the first step refused to start        exit code 2
├── FailureBudgetError   more rewards failed than max_failed_fraction allows
├── ServiceError         a judge, decomposer or teacher that did not answer
│   ├── BackendUnavailable  nothing answers there, or it says that it cannot; a ConnectionError too
│   ├── BackendTimeout      no whole reply before the deadline; a TimeoutError too
│   └── BadReply            a reply that is not what was asked for
└── Preempted            saved and stopped on a signal                         exit code 3
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

EXIT_DONE, EXIT_ERROR, EXIT_INPUT, EXIT_PREEMPTED = 0, 1, 2, 3


class RlkdError(Exception):
    """Root of every error this package raises on purpose."""

    exit_code = EXIT_ERROR
    retryable = False


class ConfigError(RlkdError, ValueError):
    """One or more settings are wrong; `problems` holds each as one sentence."""

    exit_code = EXIT_INPUT

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[Any, ...]:
        """Other ranks get it whole."""
        return type(self), (self.problems,)


class InputError(RlkdError, ValueError):
    """A file or directory that the user named cannot be used."""

    exit_code = EXIT_INPUT


class PromptFileError(InputError):
    """Every bad line of a prompt file, as `file:line: reason`."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[Any, ...]:
        """Other ranks get it whole."""
        return type(self), (self.problems,)


class CheckpointError(InputError):
    """A checkpoint is missing, incomplete or belongs to another model."""


class DamagedCheckpointError(CheckpointError):
    """Files of a checkpoint are missing, cut short or changed since they were written."""


class ShapeError(RlkdError, ValueError):
    """Tensors whose shapes do not belong together."""


class NonFiniteError(RlkdError, ArithmeticError):
    """NaN or infinity in a loss or gradient; names the micro-batch."""


class GateError(RlkdError):
    """A check before the first step found that training would not do what was asked."""

    exit_code = EXIT_INPUT


class FailureBudgetError(RlkdError):
    """Too many rollouts have no reward because a component of the system failed."""


class ServiceError(RlkdError):
    """A service (judge, decomposer, teacher, rollout engine) failed to answer."""

    retryable = True


class BackendUnavailable(ServiceError, ConnectionError):
    """A backend cannot be reached, refuses, or is left alone after failures; `retry_after_s` where it is known."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BackendTimeout(ServiceError, TimeoutError):
    """A backend gave no whole reply before the deadline."""


class BadReply(ServiceError):
    """A backend replied, but not in the form that was asked for, or as another model."""


class Preempted(RlkdError):
    """The run was asked to stop, has saved, and can be started again."""

    exit_code = EXIT_PREEMPTED
