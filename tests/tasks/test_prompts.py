import json

import pytest

from rlkd_nemo import tasks
from rlkd_nemo.config.schema import PromptsTask
from rlkd_nemo.errors import ConfigError, InputError, PromptFileError
from rlkd_nemo.interfaces import Task


@pytest.fixture
def write(tmp_path):
    """Writes a prompt file and builds its task."""

    def build(rows, **settings):
        path = tmp_path / "prompts.jsonl"
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path.write_bytes(b"\n".join(lines) + b"\n")
        return tasks.build(PromptsTask(path=str(path), **settings))

    return build


def rows(number, **more):
    return [{"problem": f"What is {i} + 1?", "answer": i + 1, "teacher_path": f"p{i}", **more} for i in range(number)]


def test_problems_travel_whole(write):
    task = write([{"problem": "q <think>", "answer": 3, "teacher_paths": ["a", "b"], "source": "s"}])
    (problem,) = task.generate("train", 0, "", 1)
    assert isinstance(task, Task) and task.symbols() is None and task.notation() is None
    assert (problem.prompt, problem.answer, problem.teacher_paths) == ("q <think>", "3", ("a", "b"))
    assert problem.extra == {"source": "s"}


def test_other_key_names(write):
    task = write(
        [{"q": "x", "a": "y", "trace": "z"}],
        problem_key="q",
        answer_key="a",
        teacher_path_key="trace",
        validation_fraction=0.0,
        test_fraction=0.0,
    )
    (problem,) = task.generate("train", 0, "", 1)
    assert (problem.prompt, problem.answer, problem.teacher_paths) == ("x", "y", ("z",))


def test_splits_are_disjoint_and_do_not_move_when_the_file_grows(write):
    small = {split: {p.id for p in group} for split, group in write(rows(1000)).problems.items()}
    large = {split: {p.id for p in group} for split, group in write(rows(3000)[::-1]).problems.items()}
    assert sum(map(len, large.values())) == len(set.union(*large.values())) == 3000
    assert all(small[split] <= large[split] for split in small)
    # expected 300 each, standard deviation 16
    assert 220 < len(large["validation"]) < 380 and 220 < len(large["test"]) < 380


def test_train_goes_round_and_held_out_ends(write):
    task = write(rows(100))
    train, held = len(task.problems["train"]), len(task.problems["test"])
    walked = task.generate("train", 0, "", 2 * train)
    first, second = [p.id for p in walked[:train]], [p.id for p in walked[train:]]
    assert sorted(first) == sorted(second) and first != second and len(set(first)) == train
    assert task.generate("train", 0, "", 7, start=train - 3) == walked[train - 3 : train + 4]
    assert task.generate("train", 1, "", train) != walked[:train]
    assert len({p.id for p in task.generate("test", 0, "", held)}) == held
    with pytest.raises(InputError, match=rf"the test split has {held} problems, {held + 1} were asked for"):
        task.generate("test", 0, "", held + 1)


def test_demonstrations_are_the_teacher_paths(write):
    task = write(
        [{"problem": "x", "answer": "1", "teacher_paths": ["a", "b"]}, {"problem": "y", "answer": "1"}],
        validation_fraction=0.0,
        test_fraction=0.0,
    )
    pairs = task.demonstrations("train", 0, "", 4, strategies=["post"], noise=0.0)
    assert [(p.prompt, text) for p, text in pairs] == [("x", "a"), ("x", "b"), ("x", "a"), ("x", "b")]
    assert task.demonstrations("train", 0, "", 1, strategies=["post"], noise=0.0, start=1) == pairs[1:2]
    with pytest.raises(ConfigError, match=r"noise=0\.1"):
        task.demonstrations("train", 0, "", 1, strategies=["post"], noise=0.1)


def test_no_paths_no_demonstrations(write):
    task = write([{"problem": "x", "answer": "1"}], validation_fraction=0.0, test_fraction=0.0)
    with pytest.raises(InputError, match=r"task\.teacher_path_key=teacher_path"):
        task.demonstrations("train", 0, "", 1, strategies=["post"], noise=0.0)


def test_verify(write):
    task = write([{"problem": "x", "answer": "0.5"}], validation_fraction=0.0, test_fraction=0.0)
    (problem,) = task.generate("train", 0, "", 1)
    assert task.verify(problem, "hm</think><answer>1/2</answer>")
    assert task.verify(problem, r"</think>It is \boxed{\frac{1}{2}}.")
    assert not task.verify(problem, "</think><answer>2</answer>")
    assert not task.verify(problem, "0.5") and not task.verify(problem, "")


def test_every_bad_line_is_named(write):
    bad = [
        {"problem": "good", "answer": "1"},
        b"{not json",
        b'"text"',
        {"answer": "1"},
        {"problem": " ", "answer": "1"},
        {"problem": "q1", "answer": ""},
        {"problem": "q2", "answer": True},
        {"problem": "q3", "answer": "1", "teacher_path": 5},
        {"problem": "q4", "answer": "1", "teacher_paths": ["a", ""]},
        {"problem": "q5", "answer": "1", "teacher_path": "a", "teacher_paths": ["b"]},
        b'{"problem": "\xff", "answer": "1"}',
        b'{"problem": "q6", "answer": NaN}',
        b"[" * 100_000,
        b"",
        {"problem": "  good ", "answer": "1"},
        {"problem": 1},
    ]
    with pytest.raises(PromptFileError) as caught:
        write(bad)
    numbers = [int(problem.split("prompts.jsonl:")[1].split(":")[0]) for problem in caught.value.problems]
    # line 1 is good, line 14 is blank, line 16 has two faults
    assert numbers == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 16, 16]
    assert "the same problem as on line 1" in str(caught.value) and "'answer' is missing" in str(caught.value)
    assert all("prompts.jsonl:" in line and ": " in line for line in str(caught.value).split("\n"))


def test_missing_and_empty_files(tmp_path, write):
    with pytest.raises(InputError, match=r"task\.path=.*cannot be read"):
        tasks.build(PromptsTask(path=str(tmp_path / "none.jsonl")))
    with pytest.raises(InputError, match="cannot be read"):
        tasks.build(PromptsTask(path=str(tmp_path)))
    with pytest.raises(InputError, match="holds no problem"):
        write([b"", b"  "])


def test_an_empty_split(write):
    task = write(rows(3), validation_fraction=0.0, test_fraction=0.0)
    with pytest.raises(InputError, match=r"task\.validation_fraction=0\.0"):
        task.generate("validation", 0, "", 1)
    with pytest.raises(ConfigError, match="train, validation, test"):
        task.generate("dev", 0, "", 1)
