"""Mathematics from public files (layouts: math_rows.py), verified by math-verify (verifier.py).

Problems fall into train, validation and test by a hash of their text, or come from files of their own; a training problem
that a held-out file has too is left out and counted in the log. Solutions become teacher paths.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlkd_nemo.config.schema import MathTask
from rlkd_nemo.errors import ConfigError, InputError, PromptFileError
from rlkd_nemo.tasks import json_lines
from rlkd_nemo.tasks.answers import final_answer
from rlkd_nemo.tasks.chat import Chat
from rlkd_nemo.tasks.math_rows import LAYOUTS, recognise
from rlkd_nemo.tasks.prompts import Prompts, content_id, fingerprint
from rlkd_nemo.tasks.verifier import Verifier
from rlkd_nemo.types import Problem

log = logging.getLogger(__name__)
_BOXED = r"Put the final answer into \boxed{}."


class Mathematics(Prompts):
    """The task; reads whole files at once and refuses them with every bad row named.

    Raises: InputError for a missing or empty file, PromptFileError for bad rows, ConfigError for an unknown layout or
        where math-verify is missing.
    """

    paths_key = "task.layout"

    def __init__(self, settings: MathTask) -> None:
        if settings.layout != "auto" and settings.layout not in LAYOUTS:
            raise ConfigError(f"task.layout={settings.layout!r} is unknown; wanted auto or one of {', '.join(LAYOUTS)}")
        self.settings: Any = settings
        self._verifier = Verifier(settings.verify_s)
        chat = Chat(settings.chat_template)
        own = {"validation": settings.validation_path, "test": settings.test_path}
        self.problems: dict[str, list[Problem]] = {"train": [], "validation": [], "test": []}
        for split, path in own.items():
            if path:
                self.problems[split] = read(f"task.{split}_path", path, settings, chat)
        held_out = {problem.id for problems in self.problems.values() for problem in problems}
        both = {p.id for p in self.problems["validation"]} & {p.id for p in self.problems["test"]}
        if both:
            raise InputError(
                f"task.validation_path={settings.validation_path} and task.test_path={settings.test_path} share "
                f"{len(both)} problems; wanted disjoint files"
            )
        left_out = 0
        for problem in read("task.path", settings.path, settings, chat):
            split = self._split_of(problem)
            if problem.id in held_out:
                left_out += 1
            else:
                self.problems["train" if own.get(split) else split].append(problem)
        if left_out:
            log.warning("%s: %d problems are held out by files of their own and are left out", settings.path, left_out)
        self.fingerprint = fingerprint(self.problems)

    def verify(self, problem: Problem, response: str) -> bool:
        r"""Is the last <answer>...</answer> or \boxed{...} mathematically the gold answer?"""
        found = final_answer(response)
        return found is not None and self._verifier.equal(problem.answer, found)


def notation(settings: MathTask) -> None:
    """Steps carry the usual tags."""
    return None


def build(settings: MathTask) -> Mathematics:
    """The task for its settings. Raises as `Mathematics` does."""
    return Mathematics(settings)


def read(key: str, path: str, settings: MathTask, chat: Chat) -> list[Problem]:
    """All problems of a file, JSON lines or one JSON list; a problem that stands in it twice is kept once.

    Public files repeat problems, sometimes with another solution, so that a repetition is no error here.
    Raises: InputError when it cannot be read or is empty; PromptFileError with every bad row.
    """
    bad: list[str] = []
    layout = settings.layout
    problems: dict[str, Problem] = {}
    repeated = 0
    for where, row in _rows(key, path):
        if isinstance(row, str):
            bad.append(f"{where}: {row}")
            continue
        if layout == "auto":
            found = recognise(row)
            if found is None:
                bad.append(
                    f"{where}: keys {', '.join(sorted(map(str, row)))[:80]} are of no known layout (task.layout)"
                )
                continue
            layout = found  # one file, one layout
        try:
            question, gold, solutions = LAYOUTS[layout](row)
        except ValueError as err:
            bad.append(f"{where}: {err} (task.layout={layout})")
            continue
        name = content_id(question)
        if name in problems:
            repeated += 1
            continue
        problems[name] = Problem(
            id=name,
            prompt=chat.prompt(f"{question}\n{_BOXED}"),
            answer=gold,
            teacher_paths=tuple(solutions[: settings.num_teacher_paths]),
            difficulty=str(row.get("level", "")),
        )
    if bad:
        raise PromptFileError(bad)
    if not problems:
        raise InputError(f"{key}={path!r} holds no problem; wanted JSON lines or one JSON list")
    if repeated:
        log.warning("%s: %d problems stand in it more than once; the first of each is kept", path, repeated)
    return list(problems.values())


def _rows(key: str, path: str) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Where each row stands, `file:line` or `file, entry n`, and the row; in its place the reason why it is none."""
    entries = _entries(key, path)
    if entries is None:
        yield from ((f"{path}:{number}", row) for number, row in json_lines.rows(Path(path), key))
        return
    for number, row in enumerate(entries, 1):
        told = row if isinstance(row, dict) else f"found {type(row).__name__}, wanted an object"
        yield f"{path}, entry {number}", told


def _entries(key: str, path: str) -> list[Any] | None:
    """All of a file that is one JSON list; None for another."""
    try:
        with open(path, "rb") as file:
            if file.read(1000).lstrip()[:1] != b"[":
                return None
            file.seek(0)
            return list(json.load(file))
    except OSError as err:
        raise InputError(f"{key}={path!r} cannot be read ({err.strerror}); wanted JSON lines or one JSON list") from err
    except (ValueError, RecursionError) as err:
        raise InputError(f"{key}={path!r} begins as a JSON list, but is none ({err})") from err
