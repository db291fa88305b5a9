"""Do two texts say the same? Rules without a model; a model takes part by the same method."""

from __future__ import annotations

from rlkd_nemo.errors import ConfigError
from rlkd_nemo.interfaces import Judge
from rlkd_nemo.tasks.answers import equal, normalised


class ExactJudge:
    """Equal character by character."""

    name = "exact"

    def same(self, kind: str, teacher: str, student: str, problem: str) -> bool:
        """True if the texts are equal; `kind` and `problem` are not needed."""
        return teacher == student


class NormalisedJudge:
    """Equal but for case, white space, markdown and closing punctuation; answers also as exact numbers (1/2 = 0.50)."""

    name = "normalised"

    def same(self, kind: str, teacher: str, student: str, problem: str) -> bool:
        """True if the texts say the same; numbers count as such in answers only: the questions 4/2 and 2/1 differ."""
        if kind == "answer":
            return equal(teacher, student)
        return normalised(teacher) == normalised(student)


JUDGES: dict[str, type[ExactJudge] | type[NormalisedJudge]] = {cls.name: cls for cls in (ExactJudge, NormalisedJudge)}


def build(name: str) -> Judge:
    """The judge of `gsrm.judge`. Raises ConfigError, listing the choices, for another name."""
    if name not in JUDGES:
        raise ConfigError(f"gsrm.judge={name!r} is unknown; wanted one of {', '.join(JUDGES)}")
    return JUDGES[name]()
