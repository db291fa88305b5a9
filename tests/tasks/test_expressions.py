import re

import pytest

from rlkd_nemo import tasks
from rlkd_nemo.config.schema import ExpressionsTask
from rlkd_nemo.errors import ConfigError, InputError
from rlkd_nemo.interfaces import Task
from rlkd_nemo.tasks.expression_tree import STRATEGIES, Node, every_order, render, work_out
from rlkd_nemo.tasks.expressions import _generator, decompose, response
from rlkd_nemo.types import Step

# (4a+(1b+(2c*3)))d*4 modulo 5: c 2*3=6=1, b 1+1=2, a 4+2=6=1, d 1*4=4
TREE = Node("d", "*", Node("a", "+", 4, Node("b", "+", 1, Node("c", "*", 2, 3))), 4)
# (1a+2)b-(3c*4): b has two operands to be worked out first
FORKED = Node("b", "-", Node("a", "+", 1, 2), Node("c", "*", 3, 4))


@pytest.fixture(scope="module")
def task():
    return tasks.build(ExpressionsTask())


def test_the_documented_example():
    order = STRATEGIES["post"](TREE, None)
    assert render(TREE) == "(4a+(1b+(2c*3)))d*4"
    assert response(*work_out(TREE, order, 5)) == "c:2*3=1;b:1+1=2;a:4+2=1;d:1*4=4;</think><answer>4</answer>"


def test_orders():
    assert STRATEGIES["post"](FORKED, None) == ["a", "c", "b"]
    assert STRATEGIES["right"](FORKED, None) == ["c", "a", "b"]
    assert list(every_order(FORKED)) == [["a", "c", "b"], ["c", "a", "b"]]
    assert list(every_order(TREE)) == [["c", "b", "a", "d"]]  # a chain has one
    drawn = {tuple(STRATEGIES["random"](FORKED, _generator(i))) for i in range(40)}
    assert drawn == {("a", "c", "b"), ("c", "a", "b")}


def evaluate(expression, modulus):
    """Python's own arithmetic on the prompt, letters removed."""
    return str(eval(re.sub("[a-m]", "", expression)) % modulus)


@pytest.mark.parametrize("difficulty", ["1", "3-4", "6-7", "13"])
def test_answers_paths_and_symbols_are_right(task, difficulty):
    symbols = task.symbols()
    for problem in task.generate("train", 3, difficulty, 60):
        expression = problem.extra["expression"]
        assert problem.prompt == f"{expression}=<think>"
        assert problem.answer == evaluate(expression, 5)
        assert re.findall("[a-m]", expression) == list("abcdefghijklm")[: int(problem.difficulty)]
        assert task.verify(problem, problem.teacher_paths[0])
        wrong = problem.teacher_paths[0].replace(
            f"<answer>{problem.answer}", f"<answer>{(int(problem.answer) + 1) % 5}"
        )
        assert not task.verify(problem, wrong)
        assert set(expression) <= set(symbols)
    assert isinstance(task, Task)


def test_levels_are_uniform(task):
    sizes = [problem.difficulty for problem in task.generate("train", 0, "3-4", 1000)]
    # 1000 draws: standard deviation 16
    assert set(sizes) == {"3", "4"} and abs(sizes.count("3") - 500) < 80


def test_splits_share_no_problem_and_take_8_1_1(task):
    ids = {split: {p.id for p in task.generate(split, 0, "2-3", 3000 if split == "train" else 600)} for split in
           ("train", "validation", "test")}  # fmt: skip
    assert not ids["train"] & ids["validation"] and not ids["train"] & ids["test"]
    assert not ids["validation"] & ids["test"]
    assert len(ids["validation"]) == len(ids["test"]) == 600  # held-out problems are distinct
    prompts = {p.prompt for split in ids for p in task.generate(split, 1, "3", 400)}
    assert len(prompts) > 1100


def test_the_smallest_level_is_partitioned_whole():
    # One operator at modulus 2: 2 * 3 * 2 = 12 problems, all of which are in exactly one split.
    task = tasks.build(ExpressionsTask(modulus=2))
    found = {}
    for split in ("train", "validation", "test"):
        found[split] = set()
        for number in range(13):
            try:
                found[split] |= {p.prompt for p in task.generate(split, 0, "1", number)}
            except InputError as error:
                assert f"only {number - 1} distinct problems of difficulty 1" in str(error) and split != "train"
                break
    held_out = found["validation"] | found["test"]
    train = {p.prompt for p in task.generate("train", 0, "1", 300)}
    assert len(train) + len(found["validation"]) + len(found["test"]) == 12 and not train & held_out


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_streams_are_deterministic_prefix_stable_and_resumable(split):
    first, second = (tasks.build(ExpressionsTask()) for _ in range(2))
    whole = first.generate(split, 5, "3-4", 30)
    assert first.generate(split, 5, "3-4", 10) == whole[:10]
    assert second.generate(split, 5, "3-4", 10, start=20) == whole[20:]
    assert second.generate(split, 6, "3-4", 30) != whole
    assert second.generate(split, 5, "3-5", 30) != whole


def test_another_modulus_is_another_problem():
    five, seven = (tasks.build(ExpressionsTask(modulus=m)).generate("test", 0, "3", 50) for m in (5, 7))
    assert not {p.id for p in five} & {p.id for p in seven}


def test_numbers_of_two_digits():
    task = tasks.build(ExpressionsTask(modulus=12))
    for problem in task.generate("train", 0, "3", 40):
        assert problem.answer == evaluate(problem.extra["expression"], 12)
        assert len(decompose(problem.teacher_paths[0])) == 3


def test_teacher_paths_are_distinct_and_post_order_first():
    task = tasks.build(ExpressionsTask(num_teacher_paths=4))
    plain = tasks.build(ExpressionsTask()).generate("train", 0, "6", 40)
    counts = []
    for problem, single in zip(task.generate("train", 0, "6", 40), plain):
        paths = problem.teacher_paths
        assert paths[0] == single.teacher_paths[0] and len(set(paths)) == len(paths) <= 4
        assert all(task.verify(problem, path) for path in paths)
        counts.append(len(paths))
    assert max(counts) == 4 and min(counts) < 4  # some trees have fewer orders than that


def test_paths_decompose_into_the_steps_that_made_them(task):
    assert decompose("c:2*3=1;b:1+1=2;</think><answer>2</answer>") == [Step("c", "2*3", "1"), Step("b", "1+1", "2")]
    for strategy, order_of in STRATEGIES.items():
        for tree in (TREE, FORKED):
            steps, value = work_out(tree, order_of(tree, _generator(strategy)), 5)
            assert decompose(response(steps, value)) == steps
            assert task.notation().decompose(response(steps, value)) == steps


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("c:2*3=1;b:1+", [Step("c", "2*3", "1")]),  # cut off: the unfinished step is none
        ("c:2*3=1;b:1+1=2</think>", [Step("c", "2*3", "1"), Step("b", "1+1", "2")]),  # ended, only without its ;
        ("c:2*3=;b:=2;", [Step("c", "2*3", None), Step("b", None, "2")]),  # what is missing keeps its place
        ("cc;b:1+1=2;", [Step("cc"), Step("b", "1+1", "2")]),
        ("<think>c:2*3=1;", [Step("c", "2*3", "1")]),
        (";;</think>", []),
        ("</think><answer>a:1+1=2;</answer>", []),  # thinking only
        ("", []),
        ("no steps; at all", []),
    ],
)
def test_decompose_what_a_student_may_write(text, steps):
    assert decompose(text) == steps


def test_demonstrations_do_not_depend_on_the_batch(task):
    options = {"strategies": ["right", "random"], "noise": 0.35}
    whole = task.demonstrations("train", 1, "3-4", 20, **options)
    assert task.demonstrations("train", 1, "3-4", 5, start=7, **options) == whole[7:12]
    assert [problem for problem, _ in whole] == task.generate("train", 1, "3-4", 20)
    other = task.demonstrations("train", 2, "3-4", 20, **options)
    assert other != whole


def test_clean_demonstrations_follow_their_strategy(task):
    for problem, text in task.demonstrations("train", 0, "4", 50, strategies=["post"], noise=0.0):
        assert text == problem.teacher_paths[0]
    pairs = task.demonstrations("train", 0, "4", 200, strategies=["post", "right"], noise=0.0)
    assert all(task.verify(problem, text) for problem, text in pairs)
    differing = sum(text != problem.teacher_paths[0] for problem, text in pairs)
    # about half of the trees have one order only, and half of the others drew `right`
    assert 20 < differing < 90


def test_noise_is_plus_one_and_goes_on(task):
    # every answer is one more: c 6+1=7=2, b 1+2+1=4, a 4+4+1=9=4, d 4*4+1=17=2
    steps, value = work_out(TREE, ["c", "b", "a", "d"], 5, 1.0, _generator(0))
    assert response(steps, value) == "c:2*3=2;b:1+2=4;a:4+4=4;d:4*4=2;</think><answer>2</answer>"
    wrong = total = 0
    for _, text in task.demonstrations("train", 0, "3-4", 400, strategies=["post"], noise=0.35):
        steps = decompose(text)
        for step in steps:
            true = int(evaluate(step.question, 5))
            assert int(step.answer) in (true, (true + 1) % 5)
            wrong += int(step.answer) != true
            total += 1
        assert text.endswith(f"<answer>{steps[-1].answer}</answer>")
    # about 1400 steps: standard deviation 0.013
    assert abs(wrong / total - 0.35) < 0.05


@pytest.mark.parametrize("difficulty", ["0", "4-3", "14", "a", "3-", "", "-3", "3-4-5"])
def test_a_difficulty_that_is_none(task, difficulty):
    with pytest.raises(ConfigError, match="difficulty="):
        task.generate("train", 0, difficulty, 1)


def test_other_wrong_arguments(task):
    with pytest.raises(ConfigError, match="train, validation, test"):
        task.generate("dev", 0, "3", 1)
    with pytest.raises(ConfigError, match="post, right, random"):
        task.demonstrations("train", 0, "3", 1, strategies=["left"], noise=0.0)
    with pytest.raises(ConfigError, match="strategies"):
        task.demonstrations("train", 0, "3", 1, strategies=[], noise=0.0)
    with pytest.raises(ConfigError, match="noise=1.5"):
        task.demonstrations("train", 0, "3", 1, strategies=["post"], noise=1.5)
    with pytest.raises(ConfigError, match=r"task\.modulus=1"):
        tasks.build(ExpressionsTask(modulus=1))
