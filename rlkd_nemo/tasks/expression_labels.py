"""Labelled material for a GSRM that reads expressions in free text: the writer of a text knows its steps.

Beside the worked examples of the task, errors included, some texts hold steps that make no sense together, and some are
cut off: a student in training writes such things, and what is asked of the GSRM is what the text says, not what is right.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from rlkd_nemo.tasks import expression_prose as prose
from rlkd_nemo.tasks.expression_tree import LETTERS, OPERATORS
from rlkd_nemo.tasks.expressions import Expressions
from rlkd_nemo.types import Problem, Step

STRATEGIES = ["post", "right", "random"]
_QUESTION = re.compile(r"(\d+)(\D)(\d+)")
NOISE = 0.35  # as the demo's student
_AT_ONCE = 100  # so that whoever reads the stream can show how far it is


def texts(
    task: Expressions, split: str, seed: int, difficulty: str, n: int, altered: float = 0.0, cut: float = 0.0
) -> Iterator[tuple[Problem, str, list[Step]]]:
    """n problems of a split, each with a text in prose and its steps.

    Args: altered: share of texts with steps changed, repeated or missing.   cut: share of texts that break off.
    """
    rng = random.Random(f"labels {split} {seed} {difficulty}")
    for start in range(0, n, _AT_ONCE):
        number = min(_AT_ONCE, n - start)
        pairs = task.demonstrations(split, seed, difficulty, number, strategies=STRATEGIES, noise=NOISE, start=start)
        for problem, response in pairs:
            text = response.partition("</think>")[0]
            if rng.random() < altered:
                steps = _altered(prose.decompose(text), int(problem.difficulty), task.modulus, rng)
                text = prose.write(steps, rng.randrange(task.modulus), rng)
            if rng.random() < cut:
                text = text[: rng.randrange(len(text) // 4, len(text))]
            if text.strip():
                yield problem, text, prose.decompose(text)


def _altered(steps: list[Step], size: int, modulus: int, rng: random.Random) -> list[Step]:
    found: list[Step] = []
    for step in steps:
        what = rng.random()
        if what < 0.15:
            continue
        found.append(_other(step, size, modulus, rng) if what < 0.6 else step)
        if what > 0.9:
            found.append(step)
    return found or [_other(steps[0], size, modulus, rng)]


def _other(step: Step, size: int, modulus: int, rng: random.Random) -> Step:
    """A step with one to three of its parts drawn anew."""
    question = _QUESTION.fullmatch(step.question or "")
    assert question is not None, f"{step} is none of this task's own"
    parts = [step.meta, *question.groups(), step.answer or "0"]
    fresh = [
        lambda: rng.choice(LETTERS[:size]),
        lambda: str(rng.randrange(modulus)),
        lambda: rng.choice(OPERATORS),
        lambda: str(rng.randrange(modulus)),
        lambda: str(rng.randrange(modulus)),
    ]
    for place in rng.sample(range(5), rng.randint(1, 3)):
        parts[place] = fresh[place]()
    return Step(parts[0], parts[1] + parts[2] + parts[3], parts[4])
