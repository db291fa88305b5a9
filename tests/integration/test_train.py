"""Training as users start it: every objective and layout, and every way to stop and go on."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlkd_nemo.lifecycle.run_lock import RunLock
from tests.integration.conftest import read_metrics, run_example
from tests.ranks import PATIENCE_S, ROOT, launch

pytestmark = pytest.mark.ranks


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective=grpo"],
        # Data parallel 2 and pipeline parallel 2 beside another objective each: what is asked here is that they compose.
        ["objective=kdrl", "objective.reference_kl=0.01", "model.tensor_model_parallel_size=1"],
        ["objective=opd", "model.tensor_model_parallel_size=1", "model.pipeline_model_parallel_size=2"],
        ["model.context_parallel_size=2", "model.tensor_model_parallel_size=1", "model.packed_sequences=true"],
        [
            "trainer.precision=bf16",
            "gate.max_log_prob_gap=0.05",
            "rollout.tensor_model_parallel_size=2",
            "model.sequence_parallel=true",
            "model.activations_checkpoint_granularity=full",
            "model.activations_checkpoint_method=uniform",
            "model.activations_checkpoint_num_layers=1",
        ],
        [
            "rlkd.dynamic_sampling.enabled=true",
            "rlkd.overlong.mode=soft",
            "rlkd.epochs=2",
            "gsrm.alignment=monotone",
            "model.tensor_model_parallel_size=1",
            "model.optim.use_distributed_optimizer=true",
            "model.optim.overlap_grad_sync=true",
            "model.optim.overlap_param_sync=true",
            "model.optim.bucket_size=5000",
        ],
    ],
    ids=lambda overrides: overrides[0],
)
def test_overrides_are_enough(start, tmp_path, overrides):
    ended = run_example("train_rlkd", *start, *overrides, "trainer.rlkd.max_steps=2", f"exp_manager.exp_dir={tmp_path}")
    assert ended.code == 0, ended.err
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert all(line["loss/grad_norm"] > 0 for line in lines[1:])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["rollouts"] >= 32 and 0 <= summary["accuracy_after"] <= 1
    assert (tmp_path / "report.html").exists()


def test_under_torchrun(start, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = run_example(
        "train_rlkd", *start, "trainer.rlkd.max_steps=1", f"exp_manager.exp_dir={tmp_path}", launcher=launcher
    )
    assert ended.code == 0, ended.err
    assert (tmp_path / "checkpoints" / "step-000001" / "meta.json").exists()


@pytest.fixture(scope="module")
def uninterrupted(start, tmp_path_factory):
    directory = tmp_path_factory.mktemp("uninterrupted")
    ended = run_example("train_rlkd", *start, *FIVE, f"exp_manager.exp_dir={directory}")
    assert ended.code == 0, ended.err
    return read_metrics(directory)


@pytest.fixture
def held():
    """`held(point, *arguments)`: a run that waits at `point` of step 4 (held_ranks.py)."""
    started = []

    def start_one(point, *arguments):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RLKD_TEST_HOLDS": point}
        command = [sys.executable, str(Path(__file__).with_name("held_ranks.py")), *arguments]
        started.append(
            subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
        )
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


def wait_for(condition, process=None):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def living(words):
    """Processes whose command line has `words`. A zombie, which nobody has fetched yet, has none."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has gone meanwhile
            if words.encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


FIVE = ["trainer.rlkd.max_steps=5", "trainer.rlkd.save_interval=2", "rlkd.updates_per_batch=2"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGUSR1], ids=lambda n: n.name)
def test_interrupted_equals_uninterrupted_to_the_last_digit(held, start, uninterrupted, tmp_path, number):
    process = held("step", *start, *FIVE, f"exp_manager.exp_dir={tmp_path}")
    metrics = tmp_path / "metrics.jsonl"
    # Steps 0, 1, 2 and 3 are logged, 2 is saved; step 4 is on its way and waits.
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") == 4, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == (-9 if number == signal.SIGKILL else 3), said
    wait_for(lambda: not living(f"exp_dir={tmp_path}"))  # no rank outlives its launcher
    if number != signal.SIGKILL:
        assert "stopped after step 4 of 5, saved" in said

    ended = run_example(*["train_rlkd", *start, *FIVE], f"exp_manager.exp_dir={tmp_path}")
    assert ended.code == 0, ended.err
    assert read_metrics(tmp_path) == uninterrupted


def test_every_layout_and_breaking_point_resumes_to_the_last_digit(demo, tmp_path):
    student, teacher = demo / "student/checkpoints/step-000010", demo / "teacher/checkpoints/step-000020"
    said = launch(Path(__file__).with_name("resume_ranks.py"), 2, tmp_path, student, teacher).splitlines()
    whole, torn = "['step-000002'] equal", "['step-000002', 'step-000004.tmp'] equal"
    assert [line for line in said if line.startswith(("pipeline ", "data "))] == [
        f"pipeline save: {torn}",
        f"pipeline between: {whole}",
        f"pipeline validation: {whole}",
        f"data save: {torn}",
    ]


def test_a_kill_during_an_asynchronous_save_costs_nothing_but_time(held, start, uninterrupted, tmp_path):
    overrides = ["exp_manager.checkpoint_callback_params.async_save=true", f"exp_manager.exp_dir={tmp_path}"]
    process = held("save", *start, *FIVE, *overrides)
    begun, metrics = tmp_path / "checkpoints" / "step-000004.tmp", tmp_path / "metrics.jsonl"
    # Training has gone on past the checkpoint that is being written: step 5 is logged.
    wait_for(lambda: begun.exists() and metrics.read_text().count("\n") == 6, process)
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    wait_for(lambda: not living(f"exp_dir={tmp_path}"))
    assert sorted(path.name for path in begun.parent.iterdir()) == ["step-000002", "step-000004.tmp"]
    ended = run_example("train_rlkd", *start, *FIVE, *overrides)
    assert ended.code == 0, ended.err
    assert read_metrics(tmp_path) == uninterrupted
    assert (tmp_path / "checkpoints" / "step-000005" / "meta.json").exists()  # the end waited for the last one


def test_the_end_of_the_jobs_time_saves_and_gives_the_directory_back(start, uninterrupted, tmp_path, monkeypatch):
    directory = f"exp_manager.exp_dir={tmp_path}"
    holder = RunLock(tmp_path)
    holder.acquire()
    one = ["trainer.devices=1", "model.tensor_model_parallel_size=1"]
    refused = run_example("train_rlkd", *start, *FIVE, *one, directory)
    assert refused.code == 2 and refused.err.count(f"in use by another job: process {os.getpid()}") == 1, refused.err
    holder.release()

    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 3600))
    ended = run_example("train_rlkd", *start, *FIVE, directory, "exp_manager.stop_margin_s=3600")
    assert ended.code == 3, ended.err
    assert "3600 s are kept for saving" in ended.err and "stopped after step 1 of 5, saved" in ended.err
    assert not (tmp_path / "run.lock").exists()
    monkeypatch.delenv("SLURM_JOB_END_TIME")
    ended = run_example("train_rlkd", *start, *FIVE, directory)
    assert ended.code == 0, ended.err
    assert read_metrics(tmp_path) == uninterrupted


def test_evaluate_a_checkpoint(demo, start, tmp_path):
    checkpoint = demo / "teacher" / "checkpoints" / "step-000020"
    ended = run_example(
        "evaluate", *start, f"model.restore_from_path={checkpoint}", f"exp_manager.exp_dir={tmp_path}",
        "demo.test_problems=5", "demo.test_samples=2", "model.tensor_model_parallel_size=1",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert 0 <= json.loads((tmp_path / "evaluation.json").read_text())["accuracy"] <= 1


def test_an_evaluation_that_is_stopped_keeps_what_it_has_and_goes_on_to_the_last_digit(demo, tmp_path):
    teacher, student = demo / "teacher/checkpoints/step-000020", demo / "student/checkpoints/step-000010"
    said = launch(Path(__file__).with_name("evaluate_ranks.py"), 2, tmp_path, teacher, student).splitlines()
    assert [line for line in said if ": " in line or line.startswith(("was", "another"))] == [
        "stopped: True [4, 4] False",
        "refused: True",
        "went on: [4, 4, 1]",
        "equal: True",
        "left behind: []",
    ]


def test_a_prompt_file_of_ones_own(tmp_path):
    rows = [
        {
            "problem": f"{a} + {b} =",
            "answer": str(a + b),
            "teacher_path": f"<think>[Meta-reasoning 1]: add them [Sub-problem 1]: {a} + {b} [Answer 1]: {a + b}</think>"
            f"<answer>{a + b}</answer>",
        }
        for a in range(8)
        for b in range(8)
    ]
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = [
        "task=prompts", f"task.path={file}", "model.tokenizer.library=bytes", "model.encoder_seq_length=256",
        "model.num_layers=2", "model.hidden_size=32", "model.ffn_hidden_size=48",
    ]  # fmt: skip
    made = tmp_path / "sft"
    ended = run_example("train_sft", *own, "trainer.sft.max_steps=3", f"exp_manager.exp_dir={made}")
    assert ended.code == 0, ended.err
    ended = run_example(
        "train_rlkd", *own, "objective=grpo", f"model.restore_from_path={made}/checkpoints/step-000003",
        f"exp_manager.exp_dir={tmp_path}/rl", "trainer.rlkd.max_steps=1", "rlkd.num_prompts=2", "rlkd.group_size=2",
        "rollout.max_new_tokens=32", "validation.num_problems=2", "validation.samples=1",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert read_metrics(tmp_path / "rl")[-1]["reward/structure_count"] == 4
