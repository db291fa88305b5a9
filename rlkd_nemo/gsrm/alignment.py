"""How far a student's steps follow a teacher's: the structure reward of one reference.

A step earns 1 when its meta-reasoning agrees, halved for a question that disagrees and again for an answer
(arXiv:2505.16142, Algorithm 1; partial credit as in the released code).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rlkd_nemo.errors import ConfigError, InputError
from rlkd_nemo.interfaces import Judge
from rlkd_nemo.types import Step

NORMS = ("teacher", "none", "max")
ALIGNMENTS = ("prefix", "monotone")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Question:
    """Do the two texts say the same? `kind` is `meta`, `question` or `answer`."""

    kind: str
    teacher: str
    student: str


# The rules ask and do not judge: they yield questions that may be answered at the same time and are sent the answers,
# so that a judge in this process and one behind a network drive the same code.
Asking = Generator[list[Question], list[bool], Found]


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
    return answered(asking(student, teacher, norm, alignment), judge, problem)


def answered(rule: Asking[Found], judge: Judge, problem: str) -> Found:
    """The result of a rule whose questions `judge` answers, one by one, in order."""
    try:
        questions = next(rule)
        while True:
            questions = rule.send([judge.same(q.kind, q.teacher, q.student, problem) for q in questions])
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def asking(
    student: Sequence[Step], teacher: Sequence[Step], norm: str = "teacher", alignment: str = "prefix"
) -> Asking[StructureResult]:
    """`structure_reward` without a judge."""
    check_names(norm, alignment)
    if not teacher:
        raise InputError("the reference has no steps; wanted at least one, since a reward divides by their number")
    verdicts, weights = yield from (_prefix if alignment == "prefix" else _monotone)(student, teacher)
    return result_of(verdicts, weights, len(student), len(teacher), norm)


def result_of(
    verdicts: Sequence[Verdict], weights: Sequence[float], n_student: int, n_teacher: int, norm: str
) -> StructureResult:
    """Verdicts and weights of an alignment to the result."""
    followed = {verdict.teacher for verdict in verdicts if verdict.meta}
    divisor = {"teacher": n_teacher, "none": 1, "max": max(n_student, n_teacher)}[norm]
    return StructureResult(
        reward=sum(weights) / divisor,
        matched=len(followed),
        weights=tuple(weights),
        verdicts=tuple(verdicts),
        n_student=n_student,
        n_teacher=n_teacher,
        parts_at=next((index for index in range(n_teacher) if index not in followed), None),
    )


def check_names(norm: str, alignment: str) -> None:
    """Raises ConfigError for a norm or an alignment that does not exist."""
    for key, value, choices in (("norm", norm, NORMS), ("alignment", alignment, ALIGNMENTS)):
        if value not in choices:
            raise ConfigError(f"gsrm.{key}={value!r} is unknown; wanted one of {', '.join(choices)}")


def same_meta(teacher: Step, student: Step) -> Asking[bool]:
    """Do both choose the same sub-problem next? An empty text agrees with nothing, without a question."""
    if not (teacher.meta and student.meta):
        return False
    (same,) = yield [Question("meta", teacher.meta, student.meta)]
    return same


def comparable(student: Step, teacher: Step) -> list[Question]:
    """What a model may be asked about a pair of steps: the fields that both have."""
    fields = ((kind, getattr(teacher, kind), getattr(student, kind)) for kind in ("meta", "question", "answer"))
    return [Question(kind, theirs, mine) for kind, theirs, mine in fields if theirs and mine]


def compare_solving(teacher: Step, student: Step) -> Asking[tuple[bool | None, bool | None]]:
    """Do question and answer agree? None where the teacher gives none; one that the student lacks disagrees."""
    questions = [
        Question(kind, theirs, mine)
        for kind, theirs, mine in (
            ("question", teacher.question, student.question),
            ("answer", teacher.answer, student.answer),
        )
        if theirs and mine
    ]
    answers = (yield questions) if questions else []
    found = {question.kind: answer for question, answer in zip(questions, answers)}
    return (
        found.get("question", False) if teacher.question else None,
        found.get("answer", False) if teacher.answer else None,
    )


def _prefix(student: Sequence[Step], teacher: Sequence[Step]) -> Asking[tuple[list[Verdict], list[float]]]:
    verdicts: list[Verdict] = []
    for index, (mine, theirs) in enumerate(zip(student, teacher)):
        if not (yield from same_meta(theirs, mine)):
            verdicts.append(Verdict(index, index, False))
            break
        verdicts.append(Verdict(index, index, True, *(yield from compare_solving(theirs, mine))))
    return verdicts, prefix_weights(verdicts, len(student), len(teacher))


def prefix_weights(verdicts: Sequence[Verdict], n_student: int, n_teacher: int) -> list[float]:
    """One for each compared position, 0 after the mismatch."""
    weights = [verdict.weight for verdict in verdicts]
    return weights + [0.0] * (min(n_student, n_teacher) - len(weights))


def _monotone(student: Sequence[Step], teacher: Sequence[Step]) -> Asking[tuple[list[Verdict], list[float]]]:
    table = []
    for i, mine in enumerate(student):
        row = []
        for j, theirs in enumerate(teacher):
            if (yield from same_meta(theirs, mine)):
                row.append(Verdict(i, j, True, *(yield from compare_solving(theirs, mine))))
            else:
                row.append(Verdict(i, j, False))
        table.append(row)
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
