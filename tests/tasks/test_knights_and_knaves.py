import pytest

from rlkd_nemo import tasks
from rlkd_nemo.config.schema import KnightsAndKnavesTask
from rlkd_nemo.errors import ConfigError, InputError
from rlkd_nemo.gsrm.steps import parse
from rlkd_nemo.interfaces import Task
from rlkd_nemo.rewards import format as form_reward
from rlkd_nemo.types import Problem, Rollout


@pytest.fixture(scope="module")
def task():
    return tasks.build(KnightsAndKnavesTask(num_teacher_paths=2))


def test_the_task_and_its_paths(task):
    assert isinstance(task, Task) and task.symbols() is None and task.notation() is None
    counts = set()
    for problem in task.generate("train", 0, "2-8", 40):
        counts.add(problem.difficulty)
        assert 1 <= len(problem.teacher_paths) <= 2 and len(set(problem.teacher_paths)) == len(problem.teacher_paths)
        for path in problem.teacher_paths:
            assert task.verify(problem, path)
            steps = parse(path)
            assert len(steps) >= int(problem.difficulty) and all(s.meta and s.question and s.answer for s in steps)
            rollout = Rollout(problem, 0, 0, [], [], [], path, False, 0, 1.0)
            assert form_reward.form(rollout).value == 1 and form_reward.tags(rollout).value == 1
    assert counts == set("2345678")


def test_splits_share_no_statements_and_held_out_puzzles_are_distinct(task):
    claims = {s: [p.extra["claims"] for p in task.generate(s, 0, "2-3", n)]
              for s, n in (("train", 800), ("validation", 100), ("test", 100))}  # fmt: skip
    assert not set(claims["train"]) & set(claims["validation"]) and not set(claims["train"]) & set(claims["test"])
    assert not set(claims["validation"]) & set(claims["test"])
    assert len(set(claims["validation"])) == len(set(claims["test"])) == 100


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_streams_are_deterministic_prefix_stable_and_resumable(split):
    first, second = (tasks.build(KnightsAndKnavesTask()) for _ in range(2))
    whole = first.generate(split, 5, "3-4", 20)
    assert first.generate(split, 5, "3-4", 7) == whole[:7]
    assert second.generate(split, 5, "3-4", 8, start=12) == whole[12:]
    assert second.generate(split, 6, "3-4", 20) != whole
    pairs = second.demonstrations(split, 5, "3-4", 5, strategies=["post"], noise=0.0, start=3)
    assert pairs == [(p, p.teacher_paths[0]) for p in whole[3:8]]


def test_each_test_subset_of_the_paper_has_its_hundred_puzzles(task):
    for people in "28":  # the smallest level has the fewest, the largest costs most
        assert len({p.id for p in task.generate("test", 0, people, 100)}) == 100


def test_a_level_that_runs_out_says_so(task, monkeypatch):
    monkeypatch.setattr("rlkd_nemo.tasks.knights_and_knaves.MISSES", 30)
    with pytest.raises(InputError, match=r"the test split has only \d+ distinct puzzles of difficulty 2, 2000"):
        task.generate("test", 9, "2", 2000)


GOLD = Problem("x", "p", "(1) Ada is a knight\n(2) Bo is a knave")


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("(1) Ada is a knight\n(2) Bo is a knave", True),
        ("ada is a KNIGHT, and Bo is a knave.", True),
        ("(2) Bo is a knave (1) Ada is a knight", True),
        ("(1) Ada is a knight", False),  # one is missing
        ("(1) Ada is a knight\n(2) Bo is a knight", False),
        ("Ada is a knight, Bo is a knave, Bo is a knight", False),  # both kinds: no answer
        ("Ada is a knight, Bo is a knave, Bo is a knave", False),
        ("Ada is a knight, Bo is a knave, Cy is a knave", False),
        ("knight, knave", False),
        ("", False),
    ],
)
def test_verify(task, answer, right):
    assert task.verify(GOLD, f"so</think>\n<answer>\n{answer}\n</answer>") is right
    assert not task.verify(GOLD, answer)  # without its tags


@pytest.mark.parametrize("difficulty", ["1", "9", "4-3", "2-9", "x", ""])
def test_wrong_arguments(task, difficulty):
    with pytest.raises(ConfigError, match="within 2-8"):
        task.generate("train", 0, difficulty, 1)
    with pytest.raises(ConfigError, match="train, validation, test"):
        task.generate("dev", 0, "3", 1)
    with pytest.raises(ConfigError, match=r"noise=0\.1"):
        task.demonstrations("train", 0, "3", 1, strategies=["post"], noise=0.1)
    with pytest.raises(ConfigError, match="num_teacher_paths=0"):
        tasks.build(KnightsAndKnavesTask(num_teacher_paths=0))
