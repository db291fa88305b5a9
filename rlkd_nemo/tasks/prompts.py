"""Problems from a file of JSON lines: `{"problem": ..., "answer": ..., "teacher_path": ...}`.

`problem` is the text the student continues, chat template and opening tag included; a teacher path is the whole text
after it. Several paths stand in a list, under the same key or under its plural (`teacher_paths`). Other keys travel
along in `Problem.extra`. Answers are compared as exact numbers or normalised text: enough for short answers, not for
algebraic equivalence, which a task for mathematics has to bring.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkd_nemo.config.schema import PromptsTask
from rlkd_nemo.errors import ConfigError, InputError, PromptFileError
from rlkd_nemo.tasks.answers import equal, final_answer
from rlkd_nemo.tasks.json_lines import rows
from rlkd_nemo.types import Notation, Problem


class Prompts:
    """The task; reads the whole file at once and refuses it with every bad line named.

    Problems fall into train, validation and test by a hash of their text, so that a longer file moves none of them.
    The file is one level: `difficulty` is not read.
    Raises: InputError for a missing or empty file, PromptFileError for bad lines.
    """

    paths_key = "task.teacher_path_key"  # named where paths are missing

    def __init__(self, settings: PromptsTask) -> None:
        self.settings = settings
        self.problems: dict[str, list[Problem]] = {"train": [], "validation": [], "test": []}
        for problem in read(settings):
            self.problems[self._split_of(problem)].append(problem)
        self.fingerprint = fingerprint(self.problems)

    def generate(self, split: str, seed: int, difficulty: str, n: int, start: int = 0) -> list[Problem]:
        """Problems start..start+n in an order shuffled by seed; the train split begins anew, reshuffled, at its end.

        Raises: InputError when a held-out split has fewer problems than asked for, or the train split none.
        """
        problems = self._of(split)
        if split != "train" and start + n > len(problems):
            raise InputError(
                f"{self.settings.path}: the {split} split has {len(problems)} problems, {start + n} were asked for; "
                f"ask for fewer (validation.num_problems, demo.test_problems) or raise task.{split}_fraction"
            )
        return _walk(problems, (split, seed), range(start, start + n))

    def demonstrations(
        self, split: str, seed: int, difficulty: str, n: int, *, strategies: Sequence[str], noise: float, start: int = 0
    ) -> list[tuple[Problem, str]]:
        """Problems that have teacher paths, each with one of them, the next one on every pass.

        The paths are as they are: `strategies` is not read, and noise other than 0 is a ConfigError.
        """
        if noise:
            raise ConfigError(f"noise={noise}: the paths of task=prompts are given, not made; wanted 0")
        problems = [problem for problem in self._of(split) if problem.teacher_paths]
        if not problems:
            raise InputError(
                f"{self.settings.path}: no problem of the {split} split has a teacher path; "
                f"wanted them under {self.paths_key}={getattr(self.settings, self.paths_key.partition('.')[2])}"
            )
        rounds = [index // len(problems) for index in range(start, start + n)]
        walked = _walk(problems, ("demonstration", split, seed), range(start, start + n))
        return [(p, p.teacher_paths[turn % len(p.teacher_paths)]) for p, turn in zip(walked, rounds)]

    def verify(self, problem: Problem, response: str) -> bool:
        r"""Does the last <answer>...</answer> or \boxed{...} equal the gold answer, as number or normalised text?"""
        found = final_answer(response)
        return found is not None and equal(problem.answer, found)

    def symbols(self) -> None:
        """Free text has no closed vocabulary."""
        return None

    def notation(self) -> Notation | None:
        """Steps carry the usual tags."""
        return None

    def _of(self, split: str) -> list[Problem]:
        if split not in self.problems:
            raise ConfigError(f"split {split!r} does not exist; wanted one of {', '.join(self.problems)}")
        if not self.problems[split]:
            raise InputError(
                f"{self.settings.path}: no problem falls into the {split} split (task.validation_fraction="
                f"{self.settings.validation_fraction}, task.test_fraction={self.settings.test_fraction}); "
                "wanted more problems or other fractions"
            )
        return self.problems[split]

    def _split_of(self, problem: Problem) -> str:
        at = place(problem.id)
        if at < self.settings.test_fraction:
            return "test"
        return "validation" if at < self.settings.test_fraction + self.settings.validation_fraction else "train"


def notation(settings: PromptsTask) -> None:
    """Steps carry the usual tags."""
    return None


def build(settings: PromptsTask) -> Prompts:
    """The task for its settings. Raises as `Prompts` does."""
    return Prompts(settings)


def read(settings: PromptsTask) -> list[Problem]:
    """All problems of the file.

    Raises: InputError when it cannot be read or is empty; PromptFileError with every bad line as `file:line: reason`,
    the second of two equal problems included.
    """
    path = Path(settings.path)
    problems, bad = [], []
    first_line: dict[str, int] = {}
    for number, row in rows(path, "task.path"):
        reasons, problem = ([row], None) if isinstance(row, str) else _problem(row, settings)
        if problem is not None and problem.id in first_line:
            reasons.append(f"the same problem as on line {first_line[problem.id]}")
        bad += [f"{path}:{number}: {reason}" for reason in reasons]
        if problem is not None and not reasons:
            first_line[problem.id] = number
            problems.append(problem)
    if bad:
        raise PromptFileError(bad)
    if not problems:
        raise InputError(f"task.path={settings.path!r} holds no problem; wanted one JSON object a line")
    return problems


def fingerprint(problems: Mapping[str, Sequence[Problem]]) -> str:
    """Of the problems in their order, with answers and teacher paths: what a resumed run must find again."""
    digest = hashlib.sha256()
    for split in sorted(problems):
        for problem in problems[split]:
            digest.update(json.dumps([problem.id, problem.answer, problem.teacher_paths]).encode())
    return digest.hexdigest()[:16]


def content_id(problem: str) -> str:
    """The id of a problem: equal for texts that differ in white space only. Splits are made by it."""
    return hashlib.sha256(" ".join(problem.split()).encode("utf-8", errors="surrogatepass")).hexdigest()[:16]


def place(problem_id: str) -> float:
    """Where in [0, 1) a problem falls, the same in every file that holds it."""
    return int(problem_id, 16) / 16 ** len(problem_id)


def _problem(row: dict[str, Any], settings: PromptsTask) -> tuple[list[str], Problem | None]:
    """Either reasons why the line is bad, or its problem."""
    single, plural = settings.teacher_path_key, f"{settings.teacher_path_key}s"
    if row.get(single) is not None and row.get(plural) is not None:
        return [f"both {single!r} and {plural!r}; wanted one of them"], None
    question: Any = row.get(settings.problem_key)
    answer: Any = row.get(settings.answer_key)
    paths = row.get(single) if row.get(single) is not None else row.get(plural)
    paths = [] if paths is None else [paths] if isinstance(paths, str) else paths
    reasons = list(_reasons(question, answer, paths, settings))
    if reasons:
        return reasons, None
    known = {settings.problem_key, settings.answer_key, single, plural}
    return [], Problem(
        id=content_id(question),
        prompt=question,
        answer=str(answer),
        teacher_paths=tuple(paths),
        extra={key: value for key, value in row.items() if key not in known},
    )


def _reasons(question: Any, answer: Any, paths: Any, settings: PromptsTask) -> Iterator[str]:
    if not isinstance(question, str) or not question.strip():
        yield f"{settings.problem_key!r} is {_found(question)}; wanted text"
    number = isinstance(answer, (int, float)) and not isinstance(answer, bool) and math.isfinite(answer)
    if not number and not (isinstance(answer, str) and answer.strip()):
        yield f"{settings.answer_key!r} is {_found(answer)}; wanted text or a number"
    if not isinstance(paths, list) or not all(isinstance(path, str) and path.strip() for path in paths):
        yield f"{settings.teacher_path_key!r} is {_found(paths)}; wanted text or a list of texts"


def _found(value: Any) -> str:
    return "missing" if value is None else f"{json.dumps(value)[:40]}"


def _walk(problems: Sequence[Problem], name: tuple, indices: Sequence[int]) -> list[Problem]:
    """Entries of an endless walk, each pass in an order of its own."""
    orders: dict[int, list[int]] = {}
    found = []
    for index in indices:
        turn, place = divmod(index, len(problems))
        if turn not in orders:
            orders[turn] = list(range(len(problems)))
            random.Random(repr((*name, turn))).shuffle(orders[turn])
        found.append(problems[orders[turn][place]])
    return found
