"""Steps out of a decomposition that is still being written: every field as soon as it cannot change any more.

Whatever the pieces that the text comes in, the fields are those that `schema.read` finds in the whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from rlkd_nemo.errors import BadReply
from rlkd_nemo.gsrm import schema
from rlkd_nemo.gsrm import steps as tags
from rlkd_nemo.types import Step

_END_OR_ESCAPE = re.compile(r'["\\]')
_SPACE = " \t\n\r"
_OPENING, _CLOSING = "<think>", "</think>"


@dataclass(frozen=True)
class Field:
    """A complete field of step number `step` (from 0): `meta`, `question` or `answer`."""

    step: int
    name: str
    value: str | None


@dataclass(frozen=True)
class StepEnd:
    """All of a step: fields that did not come are None."""

    index: int
    step: Step


Event = Field | StepEnd


def reader(form: schema.Form) -> JsonReader | TagReader:
    """The incremental reader of a form. It has `feed(text) -> events` and `close() -> events`; both raise BadReply."""
    return JsonReader() if form == "json" else TagReader()


class JsonReader:
    """Reads `{"steps": [{"meta": ..., "question": ..., "answer": ...}, ...]}` character by character."""

    def __init__(self) -> None:
        self._text, self._at = "", 0
        self._events: list[Event] = []
        self._done = False
        self._parser = self._document()

    def feed(self, text: str) -> list[Event]:
        """Events that `text` completes. Raises BadReply as soon as the document cannot fit the schema any more."""
        self._text, self._at = self._text[self._at :] + text, 0
        if self._done:
            self._nothing_follows()
        else:
            try:
                next(self._parser)
            except StopIteration:
                self._done = True
                self._nothing_follows()
        events, self._events = self._events, []
        return events

    def close(self) -> list[Event]:
        """No events. Raises BadReply when the document is not complete."""
        if not self._done:
            raise BadReply(f"the decomposition breaks off: it ends in {schema.shown(self._text[-80:])}")
        return []

    def _nothing_follows(self) -> None:
        rest = self._text[self._at :]
        if rest.strip(_SPACE):
            raise BadReply(f"something follows the decomposition: {schema.shown(rest)}")

    # A generator that yields whenever it wants more text: the grammar reads from top to bottom.
    def _document(self) -> Generator[None, None, None]:
        yield from self._expect("{")
        key = yield from self._string()
        if key != "steps":
            raise BadReply(f'the decomposition begins with {key!r}; wanted {{"steps": [...]}}')
        yield from self._expect(":")
        yield from self._expect("[")
        if (yield from self._peek()) == "]":
            self._at += 1
        else:
            index = 0
            while True:
                yield from self._step(index)
                if (yield from self._take(",]")) == "]":
                    break
                index += 1
        yield from self._expect("}")

    def _step(self, index: int) -> Generator[None, None, None]:
        yield from self._expect("{")
        fields: dict[str, Any] = {}
        while True:
            name = yield from self._string()
            if name not in schema.FIELDS or name in fields:
                raise BadReply(f"step {index + 1} has the key {name!r} too many; wanted {', '.join(schema.FIELDS)}")
            yield from self._expect(":")
            fields[name] = yield from self._value(f"step {index + 1}: {name}", name != "meta")
            self._events.append(Field(index, name, fields[name]))
            if (yield from self._take(",}")) == "}":
                break
        self._events.append(StepEnd(index, schema.step_of(fields, index + 1)))

    def _value(self, what: str, nullable: bool) -> Generator[None, None, str | None]:
        if (yield from self._peek()) == "n" and nullable:
            for letter in "null":
                if (yield from self._next()) != letter:
                    raise BadReply(f"{what} is neither a string nor null")
            return None
        if (yield from self._peek()) != '"':
            raise BadReply(f"{what} is no string")
        return (yield from self._string())

    def _string(self) -> Generator[None, None, str]:
        yield from self._expect('"')
        self._at -= 1  # keep the whole literal at the front of the buffer while it grows
        seen = 1  # of the literal, from _at on
        while True:
            found = _END_OR_ESCAPE.search(self._text, self._at + seen)
            if found is None:
                seen = len(self._text) - self._at
                yield
            elif found.group() == "\\":
                seen = found.end() - self._at + 1  # the escaped character too, which may not be there yet
                while self._at + seen > len(self._text):
                    yield
            else:
                literal, self._at = self._text[self._at : found.end()], found.end()
                try:
                    return str(json.loads(literal))
                except ValueError as err:
                    raise BadReply(f"the decomposition is no JSON ({err}): {schema.shown(literal)}") from err

    def _next(self) -> Generator[None, None, str]:
        while self._at >= len(self._text):
            yield
        self._at += 1
        return self._text[self._at - 1]

    def _peek(self) -> Generator[None, None, str]:
        char = _SPACE[0]
        while char in _SPACE:
            char = yield from self._next()
        self._at -= 1
        return char

    def _take(self, choices: str) -> Generator[None, None, str]:
        char = yield from self._peek()
        if char not in choices:
            raise BadReply(f"the decomposition has {char!r} where one of {' '.join(choices)} belongs")
        self._at += 1
        return char

    def _expect(self, char: str) -> Generator[None, None, None]:
        yield from self._take(char)


class TagReader:
    """Reads `[Meta-reasoning 1]: ... [Sub-problem 1]: ... [Answer 1]: ...`: a field ends where the next tag begins."""

    def __init__(self) -> None:
        self._text = ""
        self._searched = 0  # everything before the open tag is done with
        self._thinking: bool | None = None  # None: not yet known
        self._open: re.Match[str] | None = None
        self._steps: list[dict[str, str]] = []
        self._room_from = len(tags.KINDS)
        self._any_meta = False
        self._events: list[Event] = []  # held back until there is a meta tag: without one there are no steps

    def feed(self, text: str) -> list[Event]:
        """Events that `text` completes; never raises."""
        self._text += text
        if self._thinking is not False:
            self._skip_thinking()
        if self._thinking is False and ("]" in text or not self._searched):
            self._scan()
        return self._release()

    def close(self) -> list[Event]:
        """The last field and step. Raises BadReply as `schema.read` does."""
        if self._thinking:
            schema.after_thinking(self._text)
        self._thinking = False
        self._scan()
        if self._open is not None:
            self._field(self._open, self._text[self._open.end() :], last=True)
        if self._steps:
            self._end_step()
        if not self._any_meta and self._text.strip() != schema.NO_STEPS:
            raise BadReply(f"the decomposition has no [{tags.LABELS['meta']} n] tag: {schema.shown(self._text)}")
        return self._release()

    def _skip_thinking(self) -> None:
        begin = self._text.lstrip()[: len(_OPENING)].lower()
        if begin == _OPENING:
            self._thinking = True
            end = self._text.lower().find(_CLOSING)
            if end >= 0:
                self._text, self._thinking = self._text[end + len(_CLOSING) :], False
        elif not _OPENING.startswith(begin):
            self._thinking = False

    def _scan(self) -> None:
        """Tags that are whole now. A tag's end may still grow (by a colon, say), its beginning may not."""
        for tag in tags.TAG.finditer(self._text, self._searched):
            if self._open is not None and tag.start() > self._open.start():
                self._field(self._open, self._text[self._open.end() : tag.start()], last=False)
            self._any_meta = self._any_meta or bool(tag["meta"])
            self._open, self._searched = tag, tag.start()

    def _field(self, tag: re.Match[str], value: str, last: bool) -> None:
        kind, value = tags.field(tag, value, last)
        if kind < self._room_from:
            if self._steps:
                self._end_step()
            self._steps.append({})
            if kind:
                self._events.append(Field(len(self._steps) - 1, "meta", ""))
        self._steps[-1][tags.KINDS[kind]] = value
        self._room_from = kind + 1
        self._events.append(Field(len(self._steps) - 1, tags.KINDS[kind], value))

    def _end_step(self) -> None:
        fields = self._steps[-1]
        step = Step(fields.get("meta", ""), fields.get("question"), fields.get("answer"))
        self._events.append(StepEnd(len(self._steps) - 1, step))

    def _release(self) -> list[Event]:
        if not self._any_meta:
            return []
        events, self._events = self._events, []
        return events
