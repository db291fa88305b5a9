"""Text to steps. A remote model that rewrites free reasoning takes part by the same two names as `TextDecomposer`."""

from __future__ import annotations

from rlkd_nemo.errors import ConfigError
from rlkd_nemo.gsrm import steps
from rlkd_nemo.interfaces import Decomposer
from rlkd_nemo.types import Notation, Step


class TextDecomposer:
    """For texts that carry their steps: in the task's own notation, or else between tags.

    `version` is part of the key of stored references, and changes with everything that changes what is read.
    """

    def __init__(self, notation: Notation | None = None) -> None:
        self._notation = notation
        self.version = "text-1" if notation is None else f"text-1+{notation.name}"

    def decompose(self, problem: str, text: str) -> list[Step]:
        """Steps in order, empty when the text has none; `problem` is not needed. Never raises."""
        if self._notation is not None:
            found = self._notation.decompose(text)
            if found:
                return found
        return steps.parse(text)


def build(name: str, notation: Notation | None) -> Decomposer:
    """The decomposer of `gsrm.decomposer`. Raises ConfigError, listing the choices, for another name."""
    if name != "text":
        raise ConfigError(f"gsrm.decomposer={name!r} is unknown; wanted one of text")
    return TextDecomposer(notation)
