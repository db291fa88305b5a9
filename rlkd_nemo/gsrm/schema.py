"""The form of a model's decomposition: JSON where the endpoint can be held to a schema, tags where it cannot.

Prompts, training data, constrained decoding and parsers all take it from here, and the names of tags from `steps.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from rlkd_nemo.errors import BadReply
from rlkd_nemo.gsrm import steps as tags
from rlkd_nemo.types import Step

Form = Literal["json", "tags"]
FIELDS = tags.KINDS
NO_STEPS = "[No steps]"  # the whole reply, between tags, for a text without reasoning
_OPENING, _CLOSING = "<think>", "</think>"

# `meta` comes first, so that a stream can be judged, and stopped, as early as possible.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "steps": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "meta": {"type": "string"},
                    "question": {"type": ["string", "null"]},
                    "answer": {"type": ["string", "null"]},
                },
                "required": list(FIELDS),
                "additionalProperties": False,
            },
        }
    },
    "required": ["steps"],
    "additionalProperties": False,
}


def write(steps: Sequence[Step], form: Form) -> str:
    """A decomposition as a model should write it. `read` gives the steps back."""
    if form == "tags":
        return tags.format(steps) if steps else NO_STEPS
    return json.dumps({"steps": [{name: getattr(step, name) for name in FIELDS} for step in steps]}, ensure_ascii=False)


def read(reply: str, form: Form) -> list[Step]:
    """Steps of a whole reply; an empty list only if the model said that there are none.

    Raises: BadReply for anything else without steps, JSON that does not fit the schema, and a model that never came
        to the end of its own thinking.
    """
    return _read_json(reply) if form == "json" else _read_tags(reply)


def step_of(fields: dict[str, Any], number: int) -> Step:
    """One step from decoded JSON. Raises BadReply naming the step (from 1)."""
    if set(fields) != set(FIELDS):
        raise BadReply(f"step {number} has the keys {sorted(fields)}; wanted {', '.join(FIELDS)}")
    for name, value in fields.items():
        if not isinstance(value, str) and (value is not None or name == "meta"):
            raise BadReply(f"step {number}: {name} is {type(value).__name__}; wanted a string")
    return Step(**fields)


def _read_json(reply: str) -> list[Step]:
    try:
        value = json.loads(reply, object_pairs_hook=unique)
    except (ValueError, RecursionError) as err:
        raise BadReply(f"the decomposition is no JSON ({err}): {shown(reply)}") from err
    if not isinstance(value, dict) or list(value) != ["steps"] or not isinstance(value["steps"], list):
        raise BadReply(f'the decomposition is not {{"steps": [...]}}: {shown(reply)}')
    found = []
    for number, fields in enumerate(value["steps"], start=1):
        if not isinstance(fields, dict):
            raise BadReply(f"step {number} is {type(fields).__name__}; wanted an object")
        found.append(step_of(fields, number))
    return found


def _read_tags(reply: str) -> list[Step]:
    reply = after_thinking(reply)
    found = tags.tagged(reply)
    if not found and reply.strip() != NO_STEPS:
        raise BadReply(f"the decomposition has no [{tags.LABELS['meta']} n] tag: {shown(reply)}")
    return found


def after_thinking(reply: str) -> str:
    """The reply without what a reasoning model thought before it: a leading <think>...</think>.

    Raises: BadReply when the thinking does not end.
    """
    if not reply.lstrip().lower().startswith(_OPENING):
        return reply
    end = reply.lower().find(_CLOSING)
    if end < 0:
        raise BadReply("the model's own thinking does not end; wanted more max_tokens, or a model that does not reason")
    return reply[end + len(_CLOSING) :]


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json.loads: an object, in which no key stands twice (ValueError)."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key stands twice in an object")
    return fields


def shown(text: str, limit: int = 80) -> str:
    """The beginning of a reply, on one line, for a message."""
    return repr(text if len(text) <= limit else text[:limit] + "...")
