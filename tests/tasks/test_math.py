r"""Public layouts, splits, and verification by math-verify in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

from rlkd_nemo import tasks
from rlkd_nemo.config.schema import MathTask
from rlkd_nemo.config.task_rules import MATH_LAYOUTS
from rlkd_nemo.errors import ConfigError, InputError, PromptFileError
from rlkd_nemo.interfaces import Task
from rlkd_nemo.tasks.math_rows import LAYOUTS, recognise
from rlkd_nemo.tasks.verifier import Verifier

ROWS = {
    "gsm8k": ({"question": "q?", "answer": "48/2 = <<48/2=24>>24 clips.\n#### 1,024"}, "1024", 1),
    "math": ({"problem": "q?", "level": "Level 2", "type": "Algebra", "solution": r"So \boxed{\frac{1}{2}}."}, r"\frac{1}{2}", 1),
    "answer": ({"problem": "q?", "answer": 72, "solution": "It is 72."}, "72", 1),
    "openr1": (
        {
            "problem": "q?", "answer": "2", "solution": "s", "correctness_math_verify": [False, True, True],
            "is_reasoning_complete": [True, True, True],
            "generations": ["wrong", "<think>\nhm\n</think>\n\nIt is \\boxed{2}.", "<think>\nah\n</think>\n\n2"],
        },
        "2", 2,
    ),
    "verl": (
        {"prompt": [{"role": "user", "content": "q?"}], "reward_model": {"ground_truth": '["\\\\frac{3}{2}"]'}, "extra_info": {}},
        r"\frac{3}{2}", 0,
    ),
}  # fmt: skip


def build(tmp_path, rows, name="data.jsonl", **settings):
    path = tmp_path / name
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b"\n")
    return tasks.build(MathTask(path=str(path), **{"validation_fraction": 0.0, "test_fraction": 0.0, **settings}))


@pytest.fixture(scope="module")
def verifier():
    worker = Verifier(20.0)
    yield worker
    worker.close()


@pytest.mark.parametrize("layout", ROWS)
def test_every_layout_is_read_and_recognised(tmp_path, layout):
    row, gold, references = ROWS[layout]
    assert recognise(row) == layout
    task = build(tmp_path, [row], num_teacher_paths=2)
    (problem,) = task.generate("train", 0, "", 1)
    assert isinstance(task, Task) and problem.answer == gold and len(problem.teacher_paths) == references
    assert problem.prompt.endswith("Assistant: <think>\n") and "q?\nPut the final answer into" in problem.prompt
    for path in problem.teacher_paths:
        assert task.verify(problem, path), path  # without the worker: the answers are equal as they stand
        assert path.count("</think>") == 1 and "<think>" not in path and path.endswith("</answer>")


def test_every_layout_is_a_choice_and_has_a_row_here():
    assert set(LAYOUTS) == set(ROWS) == set(MATH_LAYOUTS) - {"auto"}


def test_generations_that_are_wrong_or_unfinished_are_no_references():
    row, _, _ = ROWS["openr1"]
    _, _, paths = LAYOUTS["openr1"](row)
    assert [path.partition("\n")[0] for path in paths] == ["hm", "ah"]
    assert LAYOUTS["openr1"]({**row, "is_reasoning_complete": [True, False, True]})[2] == paths[1:]
    assert paths[0] == "hm\n</think>\n<answer>\nIt is \\boxed{2}.\n</answer>"


def test_one_json_list(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps([ROWS["answer"][0], {"problem": "other", "answer": "1"}]))
    task = tasks.build(MathTask(path=str(tmp_path / "list.json"), validation_fraction=0.0, test_fraction=0.0))
    assert len(task.problems["train"]) == 2


def rows(number):
    return [{"problem": f"What is {i} + 1?", "answer": i + 1} for i in range(number)]


def test_splits_by_content_and_by_files(tmp_path, caplog):
    task = build(tmp_path, rows(1000), validation_fraction=0.1, test_fraction=0.1)
    ids = {split: {p.id for p in problems} for split, problems in task.problems.items()}
    assert sum(map(len, ids.values())) == len(set.union(*ids.values())) == 1000 and 60 < len(ids["test"]) < 140
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(30)))
    task = build(tmp_path, rows(1000), test_path=str(tmp_path / "test.jsonl"), test_fraction=0.02)
    assert len(task.problems["test"]) == 30 and len(task.problems["train"]) == 970
    assert "30 problems are held out by files of their own" in caplog.text
    # Files of different layouts, each recognised by itself.
    mixed = build(tmp_path, [ROWS["verl"][0]], "verl.jsonl", test_path=str(tmp_path / "test.jsonl"))
    assert [len(mixed.problems[split]) for split in ("train", "validation", "test")] == [1, 0, 30]
    with pytest.raises(InputError, match="share 30 problems"):
        both = str(tmp_path / "test.jsonl")
        build(tmp_path, rows(40), test_path=both, validation_path=both)


def test_repeated_problems_are_kept_once_and_counted(tmp_path, caplog):
    task = build(tmp_path, [*rows(3), {"problem": " What is  1 + 1? ", "answer": 2}])
    assert len(task.problems["train"]) == 3 and "1 problems stand in it more than once" in caplog.text


def test_a_file_is_read_row_by_row(tmp_path):
    # Reasoning models' generations are long and few of them are kept: 40 MB here, of which 0.2 MB.
    row = {**ROWS["openr1"][0], "generations": ["x" * 20_000] * 3}
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for number in range(600):
            file.write(json.dumps({**row, "problem": f"q {number}?", "is_reasoning_complete": [False] * 3}) + "\n")
    tracemalloc.start()
    task = tasks.build(MathTask(path=str(path), validation_fraction=0.0, test_fraction=0.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(task.problems["train"]) == 600 and peak < path.stat().st_size / 3


def test_every_bad_row_is_named_with_its_line(tmp_path):
    bad = [
        {"problem": "good", "answer": "1"},
        b"{not json",
        b'"text"',
        {"problem": "q", "answer": " "},
        {"problem": "q", "answer": True},
        {"question": "q"},
        b"",
        {"problem": "\udfff"[:0], "answer": "1"},
        b'{"problem": "\xff", "answer": "1"}',
    ]
    with pytest.raises(PromptFileError) as caught:
        build(tmp_path, bad)
    assert [int(line.split("data.jsonl:")[1].split(":")[0]) for line in caught.value.problems] == [2, 3, 4, 5, 6, 8, 9]
    with pytest.raises(PromptFileError, match="#### result"):
        build(tmp_path, [{"question": "q", "answer": "42"}])
    with pytest.raises(PromptFileError, match=r"no \\boxed"):
        build(tmp_path, [{"problem": "q", "solution": "42"}])
    with pytest.raises(PromptFileError, match="no known layout"):
        build(tmp_path, [{"text": "q"}])
    with pytest.raises(PromptFileError, match="entry 2: 'problem' is missing"):
        (tmp_path / "list.json").write_text('[{"problem": "q", "answer": "1"}, {"answer": "1"}]')
        tasks.build(MathTask(path=str(tmp_path / "list.json")))
    for content in (b"", b"[1, 2"):
        (tmp_path / "empty.json").write_bytes(content)
        with pytest.raises(InputError, match="task.path="):
            tasks.build(MathTask(path=str(tmp_path / "empty.json")))
    with pytest.raises(InputError, match="cannot be read"):
        tasks.build(MathTask(path=str(tmp_path / "none.json")))
    with pytest.raises(ConfigError, match="task.layout='csv'"):
        build(tmp_path, rows(1), layout="csv")


@pytest.mark.parametrize(
    ("gold", "found", "same"),
    [
        ("1/2", "0.5", True),  # numbers, without the worker
        ("7", "8", False),
        (r"\frac{\sqrt{3}}{2}", r"\sqrt{3}/2", True),
        ("x^2+2x+1", "(x+1)^2", True),
        (r"\{1,2\}", r"\{2,1\}", True),
        ("(1,2)", "(2,1)", False),
        ("x+1", "x+2", False),
        ("x", "x" * 5000, False),
    ],
)
def test_equal(verifier, gold, found, same):
    assert verifier.equal(gold, found) is same


def test_threads_may_ask_at_once(verifier):
    pairs = [("2x", "x+x", True), ("x^3", "x^2", False), ("a-b", "-(b-a)", True)] * 4
    answers: dict[int, bool] = {}

    def ask(number):
        answers[number] = verifier.equal(*pairs[number][:2])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(pairs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert [answers[number] for number in range(len(pairs))] == [same for *_, same in pairs]


def test_an_answer_without_end_is_wrong_and_the_next_pair_gets_its_own_verdict(monkeypatch, caplog):
    # A worker that never answers "slow" and says true to everything else.
    code = "import sys\nprint('\"ready\"', flush=True)\nfor l in sys.stdin:\n  'slow' in l or print('true', flush=True)"
    import rlkd_nemo.tasks.verifier as module

    real = module.subprocess.Popen
    monkeypatch.setattr(module.subprocess, "Popen", lambda command, **more: real([command[0], "-c", code], **more))
    worker = Verifier(1.0)
    assert worker.equal("x", "y") is True
    process = worker._worker
    began = time.monotonic()
    assert worker.equal("x", "slow") is False and "no verdict within 1 s" in caplog.text
    assert time.monotonic() - began >= 1.0 and process.poll() is not None
    assert worker.equal("x", "z") is True
    worker.close()


def test_signals_to_the_whole_job_do_not_cost_an_answer(verifier):
    assert verifier.equal("x+1", "1+x")
    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):  # Slurm's, the terminal's
        os.kill(verifier._worker.pid, number)
    before = verifier._worker.pid
    assert verifier.equal("x+2", "2+x") and verifier._worker.pid == before


def test_a_worker_that_died_is_no_wrong_answer(verifier):
    assert verifier.equal("x+1", "1+x")
    verifier._worker.kill()
    assert verifier.equal("x+3", "3+x")


def lives(pid):
    # Not merely in /proc: in a container whose first process fetches nobody, who has ended stays there.
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def test_a_worker_does_not_outlive_whoever_started_it():
    # Its input stays open, as if it were busy and did not look.
    code = (
        "import os, subprocess, sys; w = subprocess.Popen([sys.executable, '-m', 'rlkd_nemo.gsrm.service.math_worker'], "
        "stdout=subprocess.PIPE); print(w.pid, w.stdout.readline().decode(), flush=True); os._exit(0)"
    )
    mine, its = os.pipe()
    try:
        done = subprocess.run([sys.executable, "-c", code], stdin=mine, stdout=subprocess.PIPE, text=True, timeout=240)
        pid, said = done.stdout.split()
        assert said == '"ready"'
        end = time.monotonic() + 240
        while lives(pid) and time.monotonic() < end:
            time.sleep(0.1)
        left = lives(pid)
    finally:
        os.close(mine)
        os.close(its)  # in any case it ends now
    assert not left


def test_an_answer_that_its_worker_dies_of_is_asked_for_twice_and_wrong(monkeypatch, caplog):
    code = (
        "import sys\nprint('\"ready\"', flush=True)\n"
        "for l in sys.stdin:\n  'bad' in l and sys.exit(1)\n  print('true', flush=True)"
    )
    import rlkd_nemo.tasks.verifier as module

    real, started = module.subprocess.Popen, []

    def start(command, **more):
        started.append(command)
        return real([command[0], "-c", code], **more)

    monkeypatch.setattr(module.subprocess, "Popen", start)
    worker = Verifier(20.0)
    assert worker.equal("x", "y") is True and len(started) == 1
    assert worker.equal("x", "bad") is False and len(started) == 2
    assert "died twice on 'x' and 'bad'" in caplog.text and "no verdict within" not in caplog.text
    assert worker.equal("x", "z") is True and len(started) == 3
    worker.close()


def test_a_worker_that_cannot_start_is_an_error_not_a_verdict(monkeypatch):
    monkeypatch.setattr("rlkd_nemo.tasks.verifier._WORKER", "rlkd_nemo.no_such_module")
    with pytest.raises(Exception, match="did not start"):
        Verifier(1.0).equal("x", "y")


def test_without_math_verify_the_task_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr("rlkd_nemo.tasks.verifier.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'rlkd_nemo\[gsrm\]'"):
        build(tmp_path, rows(1))
