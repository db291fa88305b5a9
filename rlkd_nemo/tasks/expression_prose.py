"""Worked expressions as free text: no tags, several phrasings, remarks that are no steps.

`First comes c, and 2*3 gives 1. Next 1+1 has to be done, which is 2 and settles b. That leaves 2. `
The steps are those of the short notation; only a reader of sentences finds them. `decompose` reads them by rule, which
is what a model's reading is compared with.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from string import Formatter

from rlkd_nemo.types import Step

FIRST = ("First ", "To begin with, ")
LATER = ("Next ", "Then ", "After that ", "Now ")
# One of these after an opening is a step. In the last one the sub-problem comes before the letter that says why.
BODIES = (
    "I look at {meta}: {question} makes {answer}. ",
    "comes {meta}, and {question} gives {answer}. ",
    "it is the turn of {meta}, where I find that {question} equals {answer}. ",
    "I take {meta} as its numbers are known; {question} is {answer}. ",
    "{question} has to be done, which is {answer} and settles {meta}. ",
)
# Said at the end, or not: a number that is no step.
CLOSINGS = ("", "That leaves {value}. ", "So the whole is {value}. ")


def write(steps: Sequence[Step], value: int | str, rng: random.Random) -> str:
    """Steps as sentences, each phrased at random, and perhaps a closing remark with the value of the whole."""
    sentences = [
        rng.choice(LATER if number else FIRST)
        + rng.choice(BODIES).format(meta=step.meta, question=step.question, answer=step.answer)
        for number, step in enumerate(steps)
    ]
    return "".join(sentences) + rng.choice(CLOSINGS).format(value=value)


def pieces() -> list[str]:
    """Everything fixed in these sentences, each text once, in order of appearance: symbols of a closed vocabulary."""
    fixed = [text for form in (*BODIES, *CLOSINGS) for text, *_ in Formatter().parse(form) if text]
    return list(dict.fromkeys([*FIRST, *LATER, *fixed]))


def decompose(text: str) -> list[Step]:
    """Steps of a response in this style, in order.

    Only whole sentences count: a last one that was cut off is no step, and neither is anything that is no phrasing of
    a step. A field left empty is None, so that the step keeps its place.
    """
    thinking = text.partition("</think>")[0].removeprefix("<think>")
    if not thinking.endswith(" "):
        thinking += " "  # the last full stop may end the text
    return [
        Step(
            next(filter(None, found.group(*_METAS)), ""),
            next(filter(None, found.group(*_QUESTIONS)), None),
            next(filter(None, found.group(*_ANSWERS)), None),
        )
        for found in _STEP.finditer(thinking)
    ]


def _pattern(number: int, body: str) -> str:
    """A body as an expression with a named group for each field."""
    parts = []
    for text, name, *_ in Formatter().parse(body):
        parts.append(re.escape(text))
        if name:
            parts.append(rf"(?P<{name}{number}>[^\s.,:;]*)")
    return "".join(parts)


_METAS, _QUESTIONS, _ANSWERS = (
    tuple(f"{name}{number}" for number in range(len(BODIES))) for name in ("meta", "question", "answer")
)
_STEP = re.compile(
    f"(?:{'|'.join(map(re.escape, (*FIRST, *LATER)))})"
    f"(?:{'|'.join(_pattern(number, body) for number, body in enumerate(BODIES))})"
)
