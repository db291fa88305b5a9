import random
import re

import pytest

from rlkd_nemo import tasks
from rlkd_nemo.config import rules
from rlkd_nemo.config.load import load
from rlkd_nemo.config.schema import ExpressionsTask
from rlkd_nemo.errors import ConfigError
from rlkd_nemo.gsrm import steps as tags
from rlkd_nemo.tasks import expression_prose as prose
from rlkd_nemo.tasks import expressions
from rlkd_nemo.tokenizer import SymbolTokenizer
from rlkd_nemo.types import Step

STEPS = [Step("c", "2*3", "1"), Step("b", "1+1", "2")]


@pytest.fixture(scope="module")
def task():
    return tasks.build(ExpressionsTask(style="prose"))


def test_every_phrasing_gives_the_steps_back_and_nothing_else_reads_them():
    bodies = set()
    for seed in range(200):
        text = prose.write(STEPS, 2, random.Random(seed))
        assert prose.decompose(f"{text}</think><answer>2</answer>") == STEPS
        assert tags.parse(text) == [] and expressions.decompose(text) != STEPS
        bodies |= {body for body in prose.BODIES if body.format(meta="c", question="2*3", answer="1") in text}
    assert bodies == set(prose.BODIES)


def test_the_documented_example():
    text = "First comes c, and 2*3 gives 1. Next 1+1 has to be done, which is 2 and settles b. That leaves 2. "
    assert prose.decompose(text) == STEPS


def test_the_same_steps_in_both_styles(task):
    short = tasks.build(ExpressionsTask())
    how = {"strategies": ["post", "right", "random"], "noise": 0.35}
    for problem, other in zip(task.generate("test", 0, "3-4", 50), short.generate("test", 0, "3-4", 50)):
        assert problem.id == other.id and problem.prompt == other.prompt
        read = task.notation().decompose(problem.teacher_paths[0])
        assert read == short.notation().decompose(other.teacher_paths[0])
    pairs = zip(task.demonstrations("train", 0, "3-4", 50, **how), short.demonstrations("train", 0, "3-4", 50, **how))
    for (problem, text), (other, letters) in pairs:
        assert task.notation().decompose(text) == short.notation().decompose(letters)
        assert task.verify(problem, text) == short.verify(other, letters)


def test_splits_and_repetition(task):
    train = {problem.id for problem in task.generate("train", 0, "3-4", 500)}
    assert not train & {problem.id for problem in task.generate("test", 0, "3-4", 300)}
    again = tasks.build(ExpressionsTask(style="prose"))
    assert again.generate("test", 0, "4", 20) == task.generate("test", 0, "4", 20)


def test_the_closed_vocabulary_writes_every_response(task):
    tokens = SymbolTokenizer(task.symbols())
    for problem, text in task.demonstrations("train", 0, "3-4", 100, strategies=["post"], noise=0.0):
        assert tokens.decode(tokens.encode(problem.prompt + text)) == problem.prompt + text
        assert len(tokens.encode(text)) <= 64


def test_several_orders_give_several_paths():
    many = tasks.build(ExpressionsTask(style="prose", num_teacher_paths=3))
    problem = next(p for p in many.generate("train", 0, "4", 50) if len(p.teacher_paths) > 1)
    orders = [tuple(step.meta for step in many.notation().decompose(path)) for path in problem.teacher_paths]
    assert len(set(orders)) == len(orders)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("", []),
        ("That leaves 3. ", []),
        ("First comes c, and 2*3 gives 1", []),  # cut off before the full stop
        ("First comes c, and 2*3 gives 1. Next comes b, and 1+1", [STEPS[0]]),
        ("First comes c, and 2*3 gives 1. Well. Next comes b, and 1+1 gives 2.", STEPS),
        ("First comes , and 2*3 gives . ", [Step("", "2*3", None)]),
        ("comes c, and 2*3 gives 1. ", []),  # no opening
    ],
)
def test_broken_sentences(text, steps):
    assert prose.decompose(text) == steps


def test_an_unknown_style_is_named():
    with pytest.raises(ConfigError, match=re.escape("task.style='rhyme'")):
        tasks.build(ExpressionsTask(style="rhyme"))
    assert any("task.style='rhyme'" in text for text in rules.check(load("rlkd_demo", ["task.style=rhyme"])))
