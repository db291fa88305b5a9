"""Verdict rows: the labelling model compares steps of texts that it took apart, through the judge's own prompts.

Compared are two texts of a problem, step by step. That alone would mostly be agreement: so the same steps also meet steps
of other places and of another problem. The model decides about these as well.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any

from rlkd_nemo.config.schema import Label
from rlkd_nemo.gsrm import alignment
from rlkd_nemo.gsrm.alignment import Question
from rlkd_nemo.gsrm.dataset import VERDICTS, DecompositionRow, ResponseRow, VerdictRow
from rlkd_nemo.gsrm.service.judge import LLMJudge
from rlkd_nemo.gsrm.service.mathematics import MathVerify
from rlkd_nemo.gsrm.service.row_file import RowFile
from rlkd_nemo.gsrm.service.sweep import Swept, sweep
from rlkd_nemo.lifecycle.signals import stop_requested
from rlkd_nemo.types import Step

log = logging.getLogger(__name__)
FORMATS = {
    "none": (),
    "per_pair": ("per_pair",),
    "per_response": ("per_response",),
    "both": ("per_pair", "per_response"),
}  # of rows, by gsrm.label.verdicts
Pairs = list[tuple[Step, Step]]  # teacher's, student's


@dataclass(frozen=True)
class Comparison:
    """One call to the judge: a question (per_pair), or all of a response, numbered by pair."""

    id: str
    problem: str
    questions: tuple[tuple[int, Question], ...]


def pairs(rows: Sequence[DecompositionRow], settings: Label) -> Iterator[tuple[str, Pairs]]:
    """A problem and the pairs of steps to compare in one response; for each two texts one as they are, `mixed` others."""
    by_problem: dict[str, list[DecompositionRow]] = {}
    for row in rows:
        if row.steps:
            by_problem.setdefault(row.problem, []).append(row)
    groups = list(by_problem.values())
    for place, group in enumerate(groups):
        stranger = groups[place + 1 - len(groups)][0].steps if len(groups) > 1 else ()
        for one, two in islice(combinations(group, 2), settings.text_pairs):
            yield one.problem, list(zip(one.steps, two.steps))
            for turn in range(1, settings.mixed + 1):
                yield one.problem, mixed(one.steps, two.steps, stranger, turn)


def mixed(teacher: Sequence[Step], student: Sequence[Step], stranger: Sequence[Step], turn: int) -> Pairs:
    """Each step of the teacher with a step `turn` places further on: of the student and of another problem by turns."""
    found: Pairs = []
    for place, step in enumerate(teacher):
        further = place + turn
        if stranger and (place % 2 or further % len(student) == place):
            found.append((step, stranger[further % len(stranger)]))
        elif further % len(student) != place:
            found.append((step, student[further % len(student)]))
    return found


async def comparisons(
    rows: Sequence[DecompositionRow], settings: Label, per_response: bool, mathematics: MathVerify
) -> list[Comparison]:
    """Each comparison once. What math-verify decides is left out: a service asks no model about it either."""
    found: dict[str, Comparison] = {}
    for problem, compared in pairs(rows, settings):
        questions = [
            (number, question)
            for number, (teacher, student) in enumerate(compared, start=1)
            for question in alignment.comparable(student, teacher)
            if question.kind != "answer" or await mathematics.equal(question.teacher, question.student) is None
        ]
        for asked in [questions] if per_response else [[(1, question)] for _, question in questions]:
            if asked:
                numbers = {number: place for place, number in enumerate(dict(asked), start=1)}  # without gaps
                numbered = tuple((numbers[number], question) for number, question in asked)
                row_id = _id(per_response, problem, numbered)
                found[row_id] = Comparison(row_id, problem, numbered)
    return list(found.values())


class VerdictLabeller:
    """Verdicts of a judge, appended to a file."""

    def __init__(self, judge: LLMJudge, out: RowFile, deadline_s: float) -> None:
        self._judge, self._out, self._deadline_s = judge, out, deadline_s

    async def label(
        self, asked: Sequence[Comparison], settings: Label, stop: Callable[[], bool] = stop_requested
    ) -> Swept[Comparison]:
        """Ask about what the file has not."""
        kind = "responses" if self._judge.per_response else "questions"
        log.info(
            "%d %s to judge, %d of them judged already", len(asked), kind, sum(c.id in self._out.rows for c in asked)
        )
        return await sweep(
            asked,
            self._one,
            "verdicts",
            concurrency=settings.concurrency,
            name=lambda comparison: f"comparison {comparison.id}",
            there=lambda comparison: comparison.id in self._out.rows,
            stop=stop,
        )

    async def _one(self, comparison: Comparison) -> None:
        if comparison.id in self._out.rows:
            return
        deadline = time.monotonic() + self._deadline_s
        fields: dict[str, Any] = {"id": comparison.id, "problem": comparison.problem, "source": self._judge.name}
        if self._judge.per_response:
            said = await self._judge.all(comparison.questions, comparison.problem, deadline)
            parts: dict[int, dict[str, dict[str, str]]] = {}
            for number, question in comparison.questions:
                pair = parts.setdefault(number, {"teacher": {}, "student": {}, "verdicts": {}})
                pair["teacher"][question.kind], pair["student"][question.kind] = question.teacher, question.student
                pair["verdicts"][question.kind] = VERDICTS[not said[number, question.kind]]
            fields["pairs"] = list(parts.values())
        else:
            ((_, question),) = comparison.questions
            same = await self._judge.same(question, comparison.problem, deadline)
            fields |= {"kind": question.kind, "teacher": question.teacher, "student": question.student}
            fields["verdict"] = VERDICTS[not same]
        self._out.add(fields, "json")


def counted(out: RowFile) -> dict[str, Any]:
    """Verdict rows of a file, and how often each kind is yes and no in them, by format."""
    found = {}
    for name, row_type in (("per_pair", VerdictRow), ("per_response", ResponseRow)):
        rows = [row for row in out.rows.values() if isinstance(row, row_type)]
        said = Counter(
            (kind, VERDICTS[not same])
            for row in rows
            for kind, same in (
                [(kind, same) for (_, kind), same in row.verdicts.items()]
                if isinstance(row, ResponseRow)
                else [(row.kind, row.same)]
            )
        )
        found[name] = {"rows": len(rows), "said": {f"{kind} {word}": n for (kind, word), n in sorted(said.items())}}
    return found


def _id(per_response: bool, problem: str, questions: Sequence[tuple[int, Question]]) -> str:
    """Of the texts alone, so that a row is found again."""
    texts = [[number, question.kind, question.teacher, question.student] for number, question in questions]
    return hashlib.sha256(json.dumps([per_response, problem, texts]).encode()).hexdigest()[:16]
