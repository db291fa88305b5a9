"""Labelled examples of the GSRM's tasks, as JSON lines: what it is trained on, and measured against.

    {"id": "r1", "domain": "math", "problem": "...", "text": "...", "steps": [{"meta": "...", "question": "...", "answer": null}]}
    {"id": "j1", "problem": "...", "kind": "answer", "teacher": "1/2", "student": "0.5", "verdict": "yes"}
    {"id": "a1", "problem": "...", "pairs": [{"teacher": {"meta": "a"}, "student": {"meta": "b"}, "verdicts": {"meta": "no"}}]}

A decomposition takes `text` (reasoning, with or without <think>) apart; a verdict compares one field of two steps, as
the judge does under `gsrm.llm.judging: per_pair`; `pairs` have all verdicts of a response, as under `per_response`.
`source` may say who labelled.
Rows become chats through `prompting`, so that what is trained is what is served, to the character.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlkd_nemo.config.ranges import DOMAINS
from rlkd_nemo.errors import BadReply, InputError, PromptFileError
from rlkd_nemo.gsrm import schema, stream
from rlkd_nemo.gsrm.alignment import Question
from rlkd_nemo.gsrm.prompting import Messages, Prompts
from rlkd_nemo.gsrm.steps import thinking
from rlkd_nemo.gsrm.verdict_reply import YES_NO as VERDICTS
from rlkd_nemo.gsrm.verdict_reply import write_verdicts
from rlkd_nemo.tasks.json_lines import rows
from rlkd_nemo.tasks.prompts import content_id, place
from rlkd_nemo.types import Step

KINDS = schema.FIELDS  # what a verdict may be about
_DECOMPOSITION = ("id", "domain", "problem", "text", "steps")
_VERDICT = ("id", "problem", "kind", "teacher", "student", "verdict")
_RESPONSE = ("id", "problem", "pairs")
_PAIR = ("teacher", "student", "verdicts")


@dataclass(frozen=True)
class DecompositionRow:
    """The steps of a text. `domain`: one of DOMAINS."""

    id: str
    domain: str
    problem: str
    text: str
    steps: tuple[Step, ...]
    source: str = ""


@dataclass(frozen=True)
class VerdictRow:
    """Do the two say the same? `kind`: the field that they are, one of KINDS."""

    id: str
    problem: str
    kind: str
    teacher: str
    student: str
    same: bool
    source: str = ""


@dataclass(frozen=True)
class Pair:
    """A step of each, field by field, and what is the same. All three have the same fields, in the order of KINDS."""

    teacher: dict[str, str]
    student: dict[str, str]
    same: dict[str, bool]


@dataclass(frozen=True)
class ResponseRow:
    """All verdicts of a response: its steps against a reference's, pair by pair, numbered from 1."""

    id: str
    problem: str
    pairs: tuple[Pair, ...]
    source: str = ""

    @property
    def verdicts(self) -> dict[tuple[int, str], bool]:
        """By number and kind."""
        return {(n, kind): same for n, pair in enumerate(self.pairs, 1) for kind, same in pair.same.items()}

    @property
    def questions(self) -> list[tuple[int, Question]]:
        """What the verdicts are about, numbered."""
        pairs = enumerate(self.pairs, 1)
        return [(n, Question(kind, pair.teacher[kind], pair.student[kind])) for n, pair in pairs for kind in pair.same]


Row = DecompositionRow | VerdictRow | ResponseRow


@dataclass(frozen=True)
class Conversation:
    """What a model is given, and the reply that is right. `cut_chars`: of the texts, that the prompt leaves out."""

    messages: Messages
    completion: str
    cut_chars: int


def read(path: str | Path, key: str, form: schema.Form = "json") -> list[Row]:
    """All rows of a file.

    Args: key: the setting that named the file, for messages.   form: in which steps will be written (`conversation`).
    Raises: InputError when it cannot be read or holds no row; PromptFileError with every bad line as
        `file:line: reason`, the second of two rows with one id included.
    """
    path = Path(path)
    found: list[Row] = []
    bad: list[str] = []
    first_line: dict[str, int] = {}
    for number, fields in rows(path, key):
        try:
            if isinstance(fields, str):
                raise InputError(fields)
            row = parse(fields, form)
            if row.id in first_line:
                raise InputError(f"id {row.id!r} is also that of line {first_line[row.id]}")
        except InputError as err:
            bad.append(f"{path}:{number}: {err}")
            continue
        first_line[row.id] = number
        found.append(row)
    if bad:
        raise PromptFileError(bad)
    if not found:
        raise InputError(f"{key}={str(path)!r} holds no row; wanted one JSON object a line")
    return found


def parse(fields: dict[str, Any], form: schema.Form = "json") -> Row:
    """One row from decoded JSON. Raises InputError with the first thing that is wrong."""
    is_verdict = "verdict" in fields or "kind" in fields
    wanted = _RESPONSE if "pairs" in fields else _VERDICT if is_verdict else _DECOMPOSITION
    missing = [name for name in wanted if name not in fields]
    if missing:
        raise InputError(f"{missing[0]!r} is missing; wanted {', '.join(wanted)}")
    strange = sorted(set(fields) - {*wanted, "source"})
    if strange:
        raise InputError(f"the key {strange[0]!r} is unknown; wanted {', '.join(wanted)}, source")
    for name, value in fields.items():
        if name not in ("steps", "pairs"):
            _check_text(name, value)
    source = fields.get("source", "")
    if "pairs" in fields:
        return ResponseRow(fields["id"], fields["problem"], _pairs(fields["pairs"]), source)
    if is_verdict:
        _check_choice("kind", fields["kind"], KINDS)
        _check_choice("verdict", fields["verdict"], VERDICTS)
        texts = {name: fields[name] for name in _VERDICT[:-1]}
        return VerdictRow(**texts, same=fields["verdict"] == "yes", source=source)
    _check_choice("domain", fields["domain"], DOMAINS)
    row = DecompositionRow(**{**fields, "steps": _steps(fields["steps"])})
    if not thinking(row.text).strip():
        raise InputError("'text' has no thinking before </think>; wanted reasoning, which is all that is decomposed")
    reply(row, form)
    return row


def line(row: Row) -> str:
    """A row as one line of a file. `parse` of its JSON gives the row back."""
    fields = asdict(row)
    if isinstance(row, VerdictRow):
        fields["verdict"] = VERDICTS[not fields.pop("same")]
    elif isinstance(row, ResponseRow):
        for pair in fields["pairs"]:
            pair["verdicts"] = {kind: VERDICTS[not same] for kind, same in pair.pop("same").items()}
    if not row.source:
        del fields["source"]
    return json.dumps(fields, ensure_ascii=False) + "\n"


def conversation(row: Row, prompts: Prompts, form: schema.Form) -> Conversation:
    """The request for a row exactly as the GSRM's service makes it, and the right reply.

    Args: form: json for a model that will be served with `constrain` vllm or json_schema, tags for none.
    Raises: InputError when the steps cannot be written in this form.
    """
    if isinstance(row, VerdictRow):
        prompt = prompts.question(row.kind, row.teacher, row.student, row.problem)
    elif isinstance(row, ResponseRow):
        pairs = [
            {"number": n, "fields": list(pair.same), "teacher": pair.teacher, "student": pair.student}
            for n, pair in enumerate(row.pairs, start=1)
        ]
        prompt = prompts.all_questions(pairs, row.problem)
    else:
        prompt = prompts.decomposition(row.problem, thinking(row.text), row.domain, form)
    return Conversation(prompt.messages, reply(row, form), prompt.cut_chars)


def reply(row: Row, form: schema.Form) -> str:
    """The right reply alone: of a verdict the plain word, which `constrain: json_schema` wraps, and so cannot be trained.

    Raises: InputError when the parsers do not find the same steps in it again: a field that holds a tag, say.
    """
    if isinstance(row, VerdictRow):
        return VERDICTS[not row.same]
    if isinstance(row, ResponseRow):
        return write_verdicts(row.verdicts)
    written = schema.write(row.steps, form)
    reader = stream.reader(form)
    try:
        found = schema.read(written, form)
        events = reader.feed(written) + reader.close()
    except BadReply as err:
        raise InputError(f"'steps' cannot be written as {form}: {err}") from err
    streamed = [event.step for event in events if isinstance(event, stream.StepEnd)]
    if found != list(row.steps) or streamed != found:
        raise InputError(f"'steps' do not come back from {form}: a field holds a tag, or white space at an end")
    return written


def split(found: Sequence[Row], held_out: float) -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows held out, by a hash of their problem: all rows of a problem stay together, a longer file
    moves none, and `task.test_fraction` of the same value holds out the same problems.

    Args: held_out: share of the problems.
    """
    parts: tuple[list[Row], list[Row]] = ([], [])
    for row in found:
        parts[place(content_id(row.problem)) < held_out].append(row)
    return parts


def _pairs(value: Any) -> tuple[Pair, ...]:
    if not isinstance(value, list) or not value:
        raise InputError(f"'pairs' is {json.dumps(value)[:80]}; wanted a list with at least one object")
    found = []
    for number, fields in enumerate(value, start=1):
        name = f"pairs[{number}]"
        if not isinstance(fields, dict) or set(fields) != set(_PAIR):
            raise InputError(f"{name!r} has not exactly the keys {', '.join(_PAIR)}")
        kinds = [kind for kind in KINDS if isinstance(fields["verdicts"], dict) and kind in fields["verdicts"]]
        for part in _PAIR:
            if not isinstance(fields[part], dict) or set(fields[part]) != set(kinds) or not kinds:
                raise InputError(
                    f"'{name}.{part}' does not have the fields that are compared; wanted the same in {', '.join(_PAIR)}, "
                    f"out of {', '.join(KINDS)}"
                )
            for kind in kinds:
                _check_text(f"{name}.{part}.{kind}", fields[part][kind])
        for kind in kinds:
            _check_choice(f"{name}.verdicts.{kind}", fields["verdicts"][kind], VERDICTS)
        teacher, student, said = ({kind: fields[part][kind] for kind in kinds} for part in _PAIR)
        found.append(Pair(teacher, student, {kind: word == "yes" for kind, word in said.items()}))
    return tuple(found)


def _steps(value: Any) -> tuple[Step, ...]:
    if not isinstance(value, list):
        raise InputError(f"'steps' is {type(value).__name__}; wanted a list of objects")
    found = []
    for number, fields in enumerate(value, start=1):
        if not isinstance(fields, dict):
            raise InputError(f"'steps': step {number} is {type(fields).__name__}; wanted an object")
        try:
            step = schema.step_of(fields, number)
        except BadReply as err:
            raise InputError(f"'steps': {err}") from err
        for name, text in fields.items():
            if text is not None:
                _check_text(f"steps[{number}].{name}", text)
        found.append(step)
    return tuple(found)


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise InputError(f"{name!r} is {type(value).__name__}; wanted text")
    if not value.strip() and name != "source":
        raise InputError(f"{name!r} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as err:
        raise InputError(f"{name!r} holds half a surrogate pair at character {err.start}") from err


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"{name!r} is {value!r}; wanted one of {', '.join(choices)}")
