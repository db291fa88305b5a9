"""The logic of knights and knaves, against an evaluation one assignment at a time."""

import itertools
import random

import pytest

from rlkd_nemo.tasks.knights import PAIRS, sample, say, solutions, table, work_out


def holds(claim, knights):
    """A claim under one assignment, straight from the meaning of its words."""
    kind, *inner = claim
    if kind == "knight":
        return knights[inner[0]]
    if kind == "knave":
        return not knights[inner[0]]
    values = [holds(part, knights) for part in inner]
    if kind == "not":
        return not values[0]
    first, second = values
    return {"and": first and second, "or": first or second, "if": not first or second, "iff": first == second}[kind]


def one_by_one(claims):
    every = itertools.product((False, True), repeat=len(claims))
    return {knights for knights in every if all(holds(c, knights) == knights[i] for i, c in enumerate(claims))}


def test_a_puzzle_by_hand():
    # Ada: Bruno is a knave. Bruno: Ada and Bruno are both knights. If Bruno were a knight, Ada would be one and lie.
    claims = [("knave", 1), ("and", ("knight", 0), ("knight", 1))]
    assert solutions(claims) == [(True, False)]
    # "I am a knave" has no solution, "I am a knight" has two.
    assert solutions([("knave", 0)]) == [] and len(solutions([("knight", 0)])) == 2


@pytest.mark.parametrize("pair", PAIRS)
def test_every_connective_against_its_meaning(pair):
    for first, second in itertools.product(("knight", "knave"), repeat=2):
        claim = ("not", (pair, (first, 0), (second, 1)))
        bits = table(claim, 2)
        for number in range(4):
            knights = (bool(number & 1), bool(number & 2))
            assert bool(bits >> number & 1) == holds(claim, knights)


@pytest.mark.parametrize("people", range(2, 9))
def test_generated_puzzles_have_one_solution_and_the_solver_finds_it(people):
    rng = random.Random(people)
    for _ in range(20):
        claims = sample(rng, people)
        assert set(solutions(claims)) == one_by_one(claims) and len(solutions(claims)) == 1
    loose = [("or", ("knight", i), ("knave", (i + 1) % people)) for i in range(people)]
    assert set(solutions(loose)) == one_by_one(loose)  # and all of several


def test_worked_paths_use_every_word_and_are_sound():
    rng = random.Random(3)
    for people in (2, 4, 6):
        for _ in range(20):
            claims = sample(rng, people)
            names = [f"N{i}" for i in range(people)]
            (solution,) = solutions(claims)
            order = list(range(people))
            rng.shuffle(order)
            steps = work_out(claims, names, order)
            said = " ".join(step.question for step in steps)
            assert all(f'"{say(claim, names)}"' in said for claim in claims)
            # The last word on everybody's kind, supposed, concluded or followed, is the solution's.
            last = {}
            for step in steps:
                for i, name in enumerate(names):
                    for kind in ("knight", "knave"):
                        if step.meta.endswith(f" {name} is a {kind}.") or f"{name} is a {kind}" in step.answer:
                            last[i] = kind == "knight"
            assert tuple(last[i] for i in range(people)) == solution and steps[-1].answer != "A contradiction"


def test_a_path_by_hand():
    claims = [("knave", 1), ("and", ("knight", 0), ("knight", 1))]
    steps = work_out(claims, ["Ada", "Bo"], [0, 1])
    assert [step.answer for step in steps] == ["Bo is a knave", "Nothing new"]
    assert steps[0].meta == "Nothing more follows by itself, so suppose Ada is a knight."
    assert steps[1].question == 'What follows if "Ada is a knight and Bo is a knight" is a lie?'
    # Beginning with Bo: a knight who says both are knights makes Ada one, whose words then are false.
    steps = work_out(claims, ["Ada", "Bo"], [1, 0])
    assert [step.answer for step in steps] == [
        "Ada is a knight", "A contradiction", "Nothing new", "Yes, so Ada is a knight",
    ]  # fmt: skip
    assert steps[2].meta == "Supposing a knight failed, so Bo is a knave."
