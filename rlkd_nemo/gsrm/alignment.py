"""How far a student's steps follow a teacher's: the structure reward of one reference.

A step earns 1 when its meta-reasoning agrees, halved for a question that disagrees and again for an answer
(arXiv:2505.16142, Algorithm 1; partial credit as in the released code).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlkd_nemo.errors import ConfigError, InputError
from rlkd_nemo.interfaces import Judge
from rlkd_nemo.types import Step

NORMS = ("teacher", "none", "max")
ALIGNMENTS = ("prefix", "monotone")


@dataclass(frozen=True)
class Verdict:
    """One comparison of a student step with a teacher step, by index.

    `question` and `answer` are None where the teacher has none or the meta-reasoning differs: nothing to compare.
    """

    student: int
    teacher: int
    meta: bool
    question: bool | None = None
    answer: bool | None = None

    @property
    def weight(self) -> float:
        """1, 1/2, 1/4 or 0."""
        return 0.5 ** ((self.question is False) + (self.answer is False)) if self.meta else 0.0


@dataclass(frozen=True)
class StructureResult:
    """A structure reward with its reasons.

    Attributes:
        reward: sum of weights over the norm; in [0, 1] except with norm `none`.
        matched: steps whose meta-reasoning agrees.
        weights: prefix: one for each compared position, min(n_student, n_teacher); monotone: one a teacher step.
        verdicts: comparisons that count; for prefix the mismatch that ended the match is the last one.
        parts_at: index of the first teacher step that the student does not follow; None when it follows all.
    """

    reward: float
    matched: int
    weights: tuple[float, ...]
    verdicts: tuple[Verdict, ...]
    n_student: int
    n_teacher: int
    parts_at: int | None


def structure_reward(
    student: Sequence[Step],
    teacher: Sequence[Step],
    judge: Judge,
    norm: str = "teacher",
    alignment: str = "prefix",
    problem: str = "",
) -> StructureResult:
    """Agreement of two lists of steps.

    Source: arXiv:2505.16142, Algorithm 1, as its released code computes it; differs in pairing fields by step (a
    missing one disagrees with a given one, without a call, and does not shift later pairs) and, by default, in the norm.
    Args:
        norm: `teacher`: divide by n_teacher; `none`: the plain sum, as released; `max`: divide by the longer list.
        alignment: `prefix`: step i with step i until the first meta mismatch; `monotone`: the order-preserving
            one-to-one pairing of largest total credit, never below prefix; judges up to n_student x n_teacher pairs.
        problem: context for the judge.
    Raises: InputError without teacher steps (a missing reference is no score); what the judge raises.
    """
    check_names(norm, alignment)
    if not teacher:
        raise InputError("the reference has no steps; wanted at least one, since a reward divides by their number")
    if alignment == "prefix":
        verdicts, weights = _prefix(student, teacher, judge, problem)
    else:
        verdicts, weights = _monotone(student, teacher, judge, problem)
    followed = {verdict.teacher for verdict in verdicts if verdict.meta}
    divisor = {"teacher": len(teacher), "none": 1, "max": max(len(student), len(teacher))}[norm]
    return StructureResult(
        reward=sum(weights) / divisor,
        matched=len(followed),
        weights=tuple(weights),
        verdicts=tuple(verdicts),
        n_student=len(student),
        n_teacher=len(teacher),
        parts_at=next((index for index in range(len(teacher)) if index not in followed), None),
    )


def check_names(norm: str, alignment: str) -> None:
    """Raises ConfigError for a norm or an alignment that does not exist."""
    for key, value, choices in (("norm", norm, NORMS), ("alignment", alignment, ALIGNMENTS)):
        if value not in choices:
            raise ConfigError(f"gsrm.{key}={value!r} is unknown; wanted one of {', '.join(choices)}")


def same_meta(teacher: Step, student: Step, judge: Judge, problem: str) -> bool:
    """Do both choose the same sub-problem next? An empty text agrees with nothing, without a call."""
    return bool(teacher.meta and student.meta) and judge.same("meta", teacher.meta, student.meta, problem)


def compare_solving(teacher: Step, student: Step, judge: Judge, problem: str) -> tuple[bool | None, bool | None]:
    """Do question and answer agree? None where the teacher gives none."""

    def agrees(kind: str, theirs: str | None, mine: str | None) -> bool | None:
        if not theirs:
            return None
        return bool(mine) and judge.same(kind, theirs, mine or "", problem)

    return agrees("question", teacher.question, student.question), agrees("answer", teacher.answer, student.answer)


def _prefix(
    student: Sequence[Step], teacher: Sequence[Step], judge: Judge, problem: str
) -> tuple[list[Verdict], list[float]]:
    verdicts: list[Verdict] = []
    for index, (mine, theirs) in enumerate(zip(student, teacher)):
        if not same_meta(theirs, mine, judge, problem):
            verdicts.append(Verdict(index, index, False))
            break
        verdicts.append(Verdict(index, index, True, *compare_solving(theirs, mine, judge, problem)))
    weights = [verdict.weight for verdict in verdicts]
    return verdicts, weights + [0.0] * (min(len(student), len(teacher)) - len(weights))


def _monotone(
    student: Sequence[Step], teacher: Sequence[Step], judge: Judge, problem: str
) -> tuple[list[Verdict], list[float]]:
    table = [
        [
            Verdict(i, j, True, *compare_solving(theirs, mine, judge, problem))
            if same_meta(theirs, mine, judge, problem)
            else Verdict(i, j, False)
            for j, theirs in enumerate(teacher)
        ]
        for i, mine in enumerate(student)
    ]
    # best[i][j]: largest credit of the first i student steps against the first j teacher steps.
    best = [[0.0] * (len(teacher) + 1) for _ in range(len(student) + 1)]
    for i, row in enumerate(table):
        for j, verdict in enumerate(row):
            best[i + 1][j + 1] = max(best[i][j] + verdict.weight, best[i][j + 1], best[i + 1][j])
    chosen: list[Verdict] = []
    i, j = len(student), len(teacher)
    while i and j:
        verdict = table[i - 1][j - 1]
        if verdict.meta and best[i][j] == best[i - 1][j - 1] + verdict.weight:
            chosen.append(verdict)
            i, j = i - 1, j - 1
        elif best[i][j] == best[i - 1][j]:
            i -= 1
        else:
            j -= 1
    chosen.reverse()
    weights = [0.0] * len(teacher)
    for verdict in chosen:
        weights[verdict.teacher] = verdict.weight
    return chosen, weights
