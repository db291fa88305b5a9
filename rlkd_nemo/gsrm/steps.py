"""Tagged text to steps and back.

Read: `[Meta-reasoning 1]: ... [Sub-problem 1]: ... [Answer 1]: ...`, and every other spelling in the released prompts,
training data and parser of arXiv:2505.16142 (Meat-reasoning and sub-think; Subproblem and Query), with or without
number, colon and markdown around the tag. Written: one spelling only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlkd_nemo.types import Step

# How a step's fields are named between tags, in their order; the same fields are keys in JSON (gsrm/schema.py).
LABELS = {"meta": "Meta-reasoning", "question": "Sub-problem", "answer": "Answer"}

TAG = re.compile(
    r"""(?:^[ \t]{0,8}(?:\#{1,6}|>|[-*+])[ \t]{1,8})?   # heading, quote or list item
    (?P<mark>\*{1,3}|_{1,3}|`)?
    \[\s{0,8}
    (?:(?P<meta>me(?:at|ta)[-_ ]?reasoning|sub[-_ ]?think)
      |(?P<question>sub[-_ ]?problem|query)
      |(?P<answer>answer))
    \s{0,8}\d{0,6}\s{0,8}[.:]?\s{0,8}\]
    (?(mark)(?:[ \t]{0,8}:)?(?P<closed>[ \t]{0,8}(?P=mark))?)
    (?:[ \t]{0,8}:)?""",
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
_OPENING = re.compile("<think>", re.IGNORECASE)
_CLOSING = re.compile("</think>", re.IGNORECASE)
# What follows the last step; the closing tag and the end of text are part of the released training targets.
TAIL = re.compile(r"(?:[*_`]{0,3}so,? the final answer is|</answer>|<\|endoftext\|>)", re.IGNORECASE)
KINDS = tuple(LABELS)


def parse(text: str) -> list[Step]:
    """Steps in order of appearance; numbers in tags are not trusted.

    Only the thinking is read: from <think>, where there is one, to </think>, where there is one. A meta tag opens a
    step; a question or answer for which the current step has no room any more opens one with meta "", so that later
    pairs do not shift. The last field ends before "So the final answer is". Never raises.
    Returns: an empty list when the text has no meta tag.
    """
    return tagged(thinking(text))


def tagged(text: str) -> list[Step]:
    """`parse` without looking for the thinking: the whole text is read."""
    tags = list(TAG.finditer(text))
    if not any(tag["meta"] for tag in tags):
        return []
    steps: list[dict[str, str]] = []
    room_from = len(KINDS)  # first field that the current step still has room for
    for tag, following in zip(tags, [*tags[1:], None]):
        kind, value = field(tag, text[tag.end() : following.start() if following else len(text)], following is None)
        if kind < room_from:
            steps.append({})
        steps[-1][KINDS[kind]] = value
        room_from = kind + 1
    return [Step(step.get("meta", ""), step.get("question"), step.get("answer")) for step in steps]


def field(tag: re.Match[str], value: str, last: bool) -> tuple[int, str]:
    """Index in KINDS and clean value of a match of TAG and the text between it and the next one."""
    if last:
        value = TAIL.split(value, maxsplit=1)[0]
    value = value.strip()
    if tag["mark"] and not tag["closed"] and value.endswith(tag["mark"]):
        value = value.removesuffix(tag["mark"]).strip()  # the whole field was marked
    return next(i for i, name in enumerate(KINDS) if tag[name]), value


def format(steps: Sequence[Step]) -> str:
    """One line a field, a blank line between steps; a field that is None is left out. `parse` gives the steps back.

    Values are written as they are: one that contains a tag, </think> or outer white space does not come back the same.
    """
    blocks = []
    for number, step in enumerate(steps, start=1):
        lines = [f"[{LABELS['meta']} {number}]: {step.meta}"]
        if step.question is not None:
            lines.append(f"[{LABELS['question']} {number}]: {step.question}")
        if step.answer is not None:
            lines.append(f"[{LABELS['answer']} {number}]: {step.answer}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def thinking(text: str) -> str:
    """The text between the first <think> and the first </think>; either may be missing."""
    text = _CLOSING.split(text, maxsplit=1)[0]
    opening = _OPENING.search(text)
    return _OPENING.sub("\n", text[opening.end() :]) if opening else text
