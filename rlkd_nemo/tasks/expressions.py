"""Nested integer expressions modulo m, worked out one operator at a time.

The prompt is `(4a+(1b+(2c*3)))d*4=<think>`, each operator with a letter. A response is
`c:2*3=1;b:1+1=2;a:4+2=1;d:1*4=4;</think><answer>4</answer>`. A step `c:2*3=1;` is meta-reasoning (`c`: which
sub-expression is reduced next, several being possible), sub-problem (`2*3`) and answer (`1`), as arXiv:2505.16142
splits reasoning. Every token is one symbol of a closed vocabulary. In the style `prose` the same steps are sentences
(expression_prose.py).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

from rlkd_nemo.config.ranges import STYLES
from rlkd_nemo.config.schema import ExpressionsTask
from rlkd_nemo.errors import ConfigError, InputError
from rlkd_nemo.tasks import expression_prose as prose
from rlkd_nemo.tasks.answers import final_answer
from rlkd_nemo.tasks.expression_tree import (
    LETTERS,
    OPERATORS,
    STRATEGIES,
    Node,
    every_order,
    post_order,
    render,
    right_order,
    sample,
    work_out,
)
from rlkd_nemo.types import Notation, Problem, Step

# Tenths of all expressions, by content hash.
SPLITS = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}
# So many candidates in a row without a new problem: the level has no more, or next to none.
MISSES = 20_000


@dataclass
class _Stream:
    """Distinct problems found so far, and the generator that goes on from there."""

    rng: random.Random
    trees: list[Node] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)


class Expressions:
    """The task; see the module. Held-out streams are kept, so that asking for them again costs nothing."""

    def __init__(self, settings: ExpressionsTask) -> None:
        if settings.modulus < 2 or settings.num_teacher_paths < 1:
            raise ConfigError(
                f"task.modulus={settings.modulus}, task.num_teacher_paths={settings.num_teacher_paths}; "
                "wanted at least 2 and 1"
            )
        if settings.style not in STYLES:
            raise ConfigError(f"task.style={settings.style!r} is unknown; wanted one of {', '.join(STYLES)}")
        self.modulus, self.num_teacher_paths = settings.modulus, settings.num_teacher_paths
        self.prose = settings.style == "prose"
        self._streams: dict[tuple[str, int, str], _Stream] = {}

    def generate(self, split: str, seed: int, difficulty: str, n: int, start: int = 0) -> list[Problem]:
        """Problems start..start+n of a stream.

        Args: difficulty: number of operators, `4` or `3-4` (uniform). Train problems may repeat, held-out ones do not.
        Raises: InputError when a split has too few distinct problems of this difficulty; ConfigError for a split or
        difficulty that does not exist.
        """
        return [self._problem(tree, size) for tree, size in self._trees(split, seed, difficulty, n, start)]

    def demonstrations(
        self, split: str, seed: int, difficulty: str, n: int, *, strategies: Sequence[str], noise: float, start: int = 0
    ) -> list[tuple[Problem, str]]:
        """Problems start..start+n, each with a response in an order drawn from `strategies`.

        Args:
            strategies: post (left operand first), right (right operand first), random (any ready operator).
            noise: probability that a sub-answer is the true one plus 1; the error goes on to the final answer.
        """
        unknown = [name for name in strategies if name not in STRATEGIES]
        if unknown or not strategies:
            raise ConfigError(f"strategies={list(strategies)}; wanted some of {', '.join(STRATEGIES)}")
        if not 0 <= noise <= 1:
            raise ConfigError(f"noise={noise} is out of range; wanted a probability in [0, 1]")
        pairs = []
        for index, (tree, size) in enumerate(self._trees(split, seed, difficulty, n, start), start):
            rng = _generator("demonstration", split, seed, difficulty, index)
            order = STRATEGIES[rng.choice(list(strategies))](tree, rng)
            worked = work_out(tree, order, self.modulus, noise, rng)
            pairs.append((self._problem(tree, size), self.respond(*worked, rng)))
        return pairs

    def verify(self, problem: Problem, response: str) -> bool:
        """Is the text of the last <answer>...</answer> the gold number?"""
        return final_answer(response) == problem.answer

    def respond(self, steps: Sequence[Step], value: int, rng: random.Random) -> str:
        """A response in the task's style; `rng` chooses the phrasings of prose."""
        if not self.prose:
            return response(steps, value)
        return f"{prose.write(steps, value, rng)}</think><answer>{value}</answer>"

    def symbols(self) -> list[str]:
        """Numbers, operators, punctuation, letters and the four tags: 30 at modulus 5; in prose its fixed pieces too."""
        numbers = [str(value) for value in range(self.modulus)]
        short = [*numbers, *OPERATORS, *"()=:;", *LETTERS, "<think>", "</think>", "<answer>", "</answer>"]
        return [*short, *prose.pieces()] if self.prose else short

    def notation(self) -> Notation:
        """`letter:question=answer;` a step; in prose the sentences, read by rule."""
        return _notation(self.prose)

    def _trees(self, split: str, seed: int, difficulty: str, n: int, start: int) -> list[tuple[Node, int]]:
        if split not in SPLITS:
            raise ConfigError(f"split {split!r} does not exist; wanted one of {', '.join(SPLITS)}")
        sizes = _sizes(difficulty)
        if split == "train":
            found = []
            for index in range(start, start + n):
                tree = self._draw(_generator("train", seed, difficulty, index), split, sizes, None)
                if tree is None:
                    raise InputError(
                        f"data.train_difficulty={difficulty} has no train problem at task.modulus={self.modulus}; "
                        "raise one of them"
                    )
                found.append(tree)
        else:
            found = self._held_out(split, seed, difficulty, start + n)[start:]
        return [(tree, _size(tree)) for tree in found]

    def _held_out(self, split: str, seed: int, difficulty: str, number: int) -> list[Node]:
        """The first `number` distinct problems of a stream."""
        key = (split, seed, difficulty)
        stream = self._streams.setdefault(key, _Stream(_generator(*key)))
        while len(stream.trees) < number:
            tree = self._draw(stream.rng, split, _sizes(difficulty), stream.seen)
            if tree is None:
                raise InputError(
                    f"the {split} split has only {len(stream.trees)} distinct problems of difficulty {difficulty} at "
                    f"task.modulus={self.modulus}, {number} were asked for; ask for fewer (validation.num_problems, "
                    "demo.test_problems) or raise data.validation_difficulty"
                )
            stream.trees.append(tree)
        return stream.trees[:number]

    def _draw(self, rng: random.Random, split: str, sizes: Sequence[int], seen: set[str] | None) -> Node | None:
        """The next tree of `split` that is not in `seen`, which it joins; None after MISSES candidates in vain."""
        for _ in range(MISSES):
            tree = sample(rng, rng.choice(sizes), self.modulus)
            digest = self._digest(tree)
            if int(digest, 16) % 10 not in SPLITS[split] or (seen is not None and digest in seen):
                continue
            if seen is not None:
                seen.add(digest)
            return tree
        return None

    def _digest(self, tree: Node) -> str:
        """Content hash: the modulus changes the answer, so it is part of the content."""
        return hashlib.sha256(f"{render(tree)} mod {self.modulus}".encode()).hexdigest()

    def _problem(self, tree: Node, size: int) -> Problem:
        orders: list[list[str]] = []
        canonical = (post_order(tree, _NO_CHOICE), right_order(tree, _NO_CHOICE))
        for order in chain(canonical, every_order(tree) if self.num_teacher_paths > 1 else ()):
            if order not in orders:
                orders.append(order)
            if len(orders) == self.num_teacher_paths:
                break
        expression = render(tree)
        paths = [
            self.respond(*work_out(tree, order, self.modulus), _generator("teacher path", expression, order))
            for order in orders
        ]
        return Problem(
            id=self._digest(tree)[:16],
            prompt=f"{expression}=<think>",
            answer=str(work_out(tree, post_order(tree, _NO_CHOICE), self.modulus)[1]),
            teacher_paths=tuple(paths),
            difficulty=str(size),
            extra={"expression": expression, "modulus": self.modulus},
        )


def notation(settings: ExpressionsTask) -> Notation:
    """How the task writes steps."""
    return _notation(settings.style == "prose")


def _notation(in_prose: bool) -> Notation:
    return Notation("prose-1", prose.decompose) if in_prose else Notation("expressions-1", decompose)


def build(settings: ExpressionsTask) -> Expressions:
    """The task for its settings. Raises ConfigError for a modulus below 2 or fewer than one teacher path."""
    return Expressions(settings)


def response(steps: Sequence[Step], value: int) -> str:
    """What follows the prompt: the steps, the end of thinking and the answer; the end-of-text token is the caller's."""
    worked = "".join(f"{step.meta}:{step.question}={step.answer};" for step in steps)
    return f"{worked}</think><answer>{value}</answer>"


def decompose(text: str) -> list[Step]:
    """Steps of a response in this notation.

    A step ends with `;` or with the thinking; an unfinished last one (truncated text) is none. A piece that lacks a
    field keeps its place, with None for what is missing, so that later steps do not shift.
    Returns: an empty list when no piece has the form of a step.
    """
    thinking, closing, _ = text.partition("</think>")
    *pieces, last = thinking.removeprefix("<think>").split(";")
    if closing:
        pieces.append(last)
    steps = []
    for piece in pieces:
        meta, _, rest = piece.partition(":")
        question, _, answer = rest.partition("=")
        if piece.strip():
            steps.append(Step(meta.strip(), question.strip() or None, answer.strip() or None))
    return steps if any(step.question is not None for step in steps) else []


_NO_CHOICE = random.Random(0)  # post and right order read no random number


def _generator(*name: object) -> random.Random:
    """Random numbers named by their arguments: equal on every machine, independent of one another."""
    return random.Random(int.from_bytes(hashlib.sha256(repr(name).encode()).digest()[:8], "big"))


def _size(tree: Node | int) -> int:
    return 1 + _size(tree.left) + _size(tree.right) if isinstance(tree, Node) else 0


def _sizes(difficulty: str) -> range:
    first, dash, last = str(difficulty).partition("-")
    if first.isdecimal() and (last.isdecimal() or not dash):
        low, high = int(first), int(last or first)
        if 1 <= low <= high <= len(LETTERS):
            return range(low, high + 1)
    raise ConfigError(
        f"difficulty={difficulty!r} of task=expressions (data.train_difficulty, data.validation_difficulty); "
        f"wanted a number of operators such as 4, or a range such as 3-4, within 1-{len(LETTERS)}"
    )
