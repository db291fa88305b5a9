"""Knights and knaves as logic: claims, truth tables, exact solutions, and a worked path to the only one.

A claim is a nested tuple: ("knight", i), ("knave", i), ("not", c), ("and" | "or" | "if" | "iff", c, d). Person i is a
knight exactly when claim i is true. Everything about n people is a number of 2**n bits, one for each assignment, so that
all of them are decided at once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rlkd_nemo.types import Step

Claim = tuple[Any, ...]
PAIRS = ("and", "or", "if", "iff")


@lru_cache(maxsize=64)
def person(index: int, people: int) -> int:
    """Assignments in which person `index` is a knight, of 2**people: bit a is set where a has bit `index`."""
    return sum(1 << a for a in range(1 << people) if a >> index & 1)


@lru_cache(maxsize=16_384)
def table(claim: Claim, people: int) -> int:
    """Assignments in which the claim is true."""
    kind, *inner = claim
    every = (1 << (1 << people)) - 1
    if kind == "knight":
        return person(inner[0], people)
    if kind == "knave":
        return every ^ person(inner[0], people)
    values = [table(part, people) for part in inner]
    if kind == "not":
        return every ^ values[0]
    first, second = values
    if kind == "and":
        return first & second
    if kind == "or":
        return first | second
    if kind == "if":
        return (every ^ first) | second
    return every ^ first ^ second


def solutions(claims: Sequence[Claim]) -> list[tuple[bool, ...]]:
    """Every assignment (True: knight) in which knights, and only they, say what is true."""
    people = len(claims)
    fits = (1 << (1 << people)) - 1
    for index, claim in enumerate(claims):
        fits &= ~(person(index, people) ^ table(claim, people))
    return [tuple(bool(a >> i & 1) for i in range(people)) for a in range(1 << people) if fits >> a & 1]


def sample(rng: random.Random, people: int) -> list[Claim]:
    """One claim a person, drawn until exactly one assignment fits."""
    while True:
        claims = [_claim(rng, people) for _ in range(people)]
        if len(solutions(claims)) == 1:
            return claims


def _claim(rng: random.Random, people: int) -> Claim:
    def about() -> Claim:
        return (rng.choice(("knight", "knave")), rng.randrange(people))

    draw = rng.random()
    if draw < 0.25:
        return about()
    first, second = about(), about()
    while second == first:
        second = about()
    pair = (rng.choice(PAIRS), first, second)
    return ("not", pair) if draw > 0.9 else pair


def say(claim: Claim, names: Sequence[str]) -> str:
    """The claim in words."""
    kind, *inner = claim
    if kind in ("knight", "knave"):
        return f"{names[inner[0]]} is a {kind}"
    if kind == "not":
        return f"this is false: {say(inner[0], names)}"  # the colon: all of it, not its first half
    first, second = (say(part, names) for part in inner)
    words = {"and": f"{first} and {second}", "or": f"{first} or {second}", "if": f"if {first}, then {second}"}
    return words.get(kind, f"{first} exactly when {second}")


def work_out(claims: Sequence[Claim], names: Sequence[str], order: Sequence[int]) -> list[Step]:
    """The steps to the only solution, each with the words of one person.

    First the words of whoever's kind is known, as true or as a lie; then those of whom what is known already decides.
    When nothing more follows, the next person in `order` is supposed to be a knight, and a knave if that ends in a
    contradiction.
    """
    steps: list[Step] = []
    if not _follow(_Puzzle(claims, names, order, steps), {}, [], set(), ""):
        raise ValueError("the claims have no solution")
    return steps


@dataclass(frozen=True)
class _Puzzle:
    claims: Sequence[Claim]
    names: Sequence[str]
    order: Sequence[int]
    steps: list[Step]

    def cases(self, known: dict[int, bool], used: set[int]) -> int:
        """Assignments that agree with what is known and with the words used so far."""
        people = len(self.claims)
        left = (1 << (1 << people)) - 1
        for index, knight in known.items():
            left &= person(index, people) if knight else ~person(index, people)
        for index in used:
            said = table(self.claims[index], people)
            left &= said if known[index] else ~said
        return left

    def found(self, known: dict[int, bool], cases: int) -> dict[int, bool]:
        """Whose kind the cases decide, beside those already known."""
        values = {i: _decided(person(i, len(self.claims)), cases) for i in self.undecided(known)} if cases else {}
        return {i: value for i, value in values.items() if value is not None}

    def told(self, found: dict[int, bool]) -> list[str]:
        return [f"{self.names[i]} is a {_kind(value)}" for i, value in found.items()]

    def undecided(self, known: dict[int, bool]) -> list[int]:
        return [index for index in self.order if index not in known]


def _follow(puzzle: _Puzzle, known: dict[int, bool], due: list[int], used: set[int], why: str) -> bool:
    """Use the words of everyone in `due`, follow what they say to the end, then suppose. False: a contradiction."""
    claims, names, steps = puzzle.claims, puzzle.names, puzzle.steps
    people = len(claims)
    known, due, used = dict(known), list(due), set(used)
    while due:
        speaker = due.pop(0)
        used.add(speaker)
        cases = puzzle.cases(known, used)
        meta = why or f"{names[speaker]} is known to be a {_kind(known[speaker])}, so these words say something certain"
        why = ""
        question = f'What follows if "{say(claims[speaker], names)}" is {"true" if known[speaker] else "a lie"}?'
        if not cases:
            steps.append(Step(f"{meta}.", question, "A contradiction"))
            return False
        found = puzzle.found(known, cases)
        known |= found
        due += list(found)
        steps.append(Step(f"{meta}.", question, " and ".join(puzzle.told(found)) or "Nothing new"))
    cases = puzzle.cases(known, used)
    for index in puzzle.undecided(known):
        value = _decided(table(claims[index], people), cases)
        if value is not None:
            known[index] = value
            used.add(index)
            cases = puzzle.cases(known, used)
            found = puzzle.found(known, cases)
            follows = [f"{names[index]} is a {_kind(value)}", *puzzle.told(found)] if cases else ["a contradiction"]
            question = f'Is "{say(claims[index], names)}" true?'
            verdict = f"{'Yes' if value else 'No'}, so {' and '.join(follows)}"
            steps.append(Step(f"What is known already decides the words of {names[index]}.", question, verdict))
            return bool(cases) and _follow(puzzle, known | found, list(found), used, "")
    rest = puzzle.undecided(known)
    if not rest:
        return True
    guess = rest[0]
    suppose = f"Nothing more follows by itself, so suppose {names[guess]} is a knight"
    if _follow(puzzle, {**known, guess: True}, [guess], used, suppose):
        return True
    refuted = f"Supposing a knight failed, so {names[guess]} is a knave"
    return _follow(puzzle, {**known, guess: False}, [guess], used, refuted)


def _decided(truth: int, cases: int) -> bool | None:
    """The value of a truth table in all the cases, None where it differs."""
    if not cases & ~truth:
        return True
    return None if cases & truth else False


def _kind(knight: bool) -> str:
    return "knight" if knight else "knave"
