"""Binary expression trees modulo m: sampling, text, and the orders in which they can be worked out."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlkd_nemo.types import Step

OPERATORS = "+-*"
LETTERS = "abcdefghijklm"  # one an operator, so this is the largest tree


@dataclass(frozen=True)
class Node:
    """An operator with its letter; an operand is a number or another operator."""

    letter: str
    operator: str
    left: Node | int
    right: Node | int


def sample(rng: random.Random, num_operators: int, modulus: int) -> Node:
    """A random tree: at each node every split of its operators is as likely; letters run left to right."""
    letters = iter(LETTERS)

    def grow(size: int) -> Node | int:
        if size == 0:
            return rng.randrange(modulus)
        left_size = rng.randrange(size)
        left = grow(left_size)
        letter, operator = next(letters), rng.choice(OPERATORS)
        return Node(letter, operator, left, grow(size - 1 - left_size))

    tree = grow(num_operators)
    assert isinstance(tree, Node)
    return tree


def render(tree: Node) -> str:
    """`(4a+(1b+(2c*3)))d*4`: every operator but the outermost in parentheses, its letter before it."""

    def operand(value: Node | int) -> str:
        return f"({render(value)})" if isinstance(value, Node) else str(value)

    return f"{operand(tree.left)}{tree.letter}{tree.operator}{operand(tree.right)}"


def nodes(tree: Node) -> list[Node]:
    """Post-order, left operand first: each node after its operands."""
    found = [node for side in (tree.left, tree.right) if isinstance(side, Node) for node in nodes(side)]
    return [*found, tree]


def post_order(tree: Node, rng: random.Random) -> list[str]:
    """Letters in the teacher's order: left operand, right operand, operator."""
    return [node.letter for node in nodes(tree)]


def right_order(tree: Node, rng: random.Random) -> list[str]:
    """Letters with the right operand first."""
    found = [letter for side in (tree.right, tree.left) if isinstance(side, Node) for letter in right_order(side, rng)]
    return [*found, tree.letter]


def random_order(tree: Node, rng: random.Random) -> list[str]:
    """Letters in a random order: each next one uniform among the operators whose operands are known."""
    remaining, order = nodes(tree), []
    while remaining:
        node = rng.choice(_ready(remaining))
        remaining.remove(node)
        order.append(node.letter)
    return order


def every_order(tree: Node) -> Iterator[list[str]]:
    """All orders in which the tree can be worked out, lazily, each once, the teacher's first."""

    def extend(remaining: list[Node], order: list[str]) -> Iterator[list[str]]:
        if not remaining:
            yield order
        for node in _ready(remaining):
            yield from extend([other for other in remaining if other is not node], [*order, node.letter])

    return extend(nodes(tree), [])


STRATEGIES = {"post": post_order, "right": right_order, "random": random_order}


def work_out(
    tree: Node, order: Sequence[str], modulus: int, noise: float = 0.0, rng: random.Random | None = None
) -> tuple[list[Step], int]:
    """Steps in the given order and the value of the whole.

    Args:
        noise: probability that a step's answer is the true one plus 1; later steps go on with it.
        rng: decides on noise; not read at noise 0.
    """
    by_letter = {node.letter: node for node in nodes(tree)}
    values: dict[str, int] = {}
    steps = []
    for letter in order:
        node = by_letter[letter]
        left, right = (side if isinstance(side, int) else values[side.letter] for side in (node.left, node.right))
        true = {"+": left + right, "-": left - right, "*": left * right}[node.operator] % modulus
        wrong = noise > 0 and rng is not None and rng.random() < noise
        values[letter] = (true + 1) % modulus if wrong else true
        steps.append(Step(letter, f"{left}{node.operator}{right}", str(values[letter])))
    return steps, values[tree.letter]


def _ready(remaining: Sequence[Node]) -> list[Node]:
    """Nodes none of whose operands is still to be worked out, in post-order."""
    open_letters = {node.letter for node in remaining}
    return [
        node
        for node in remaining
        if not any(isinstance(side, Node) and side.letter in open_letters for side in (node.left, node.right))
    ]
