"""The scripts of slurm/ under a real Slurm: trainer on two nodes, the GSRM's server on a third; every way to end."""

import json
import os
import re
import signal
import time

import pytest

from tests.integration.conftest import read_metrics

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
SCRIPT = "rlkd_70b_to_8b"


def test_a_job_runs_to_its_end(uninterrupted):
    job, metrics = uninterrupted
    assert [line["step"] for line in metrics] == list(range(13))
    assert metrics[-1]["reward/structure_count"] == 16  # all were scored, by the component on the third node
    logs = sorted(path.name for path in (job.directory / "logs").glob("*.log"))
    assert logs == [f"gsrm.{job.number}-0.0.log", f"trainer.{job.number}-0.0.log", f"trainer.{job.number}-0.1.log"]
    for name in ("config.yaml", "report.html", "summary.json"):
        assert (job.directory / name).exists()
    assert "gsrm answers at http://127.0.0.1:" in job.log and "trainer is done" in job.log


def test_told_to_stop_it_saves_is_requeued_and_goes_on_to_the_last_digit(submit, uninterrupted, figures, cluster):
    job = submit(SCRIPT)
    job.reaches(3)
    sent = time.time()
    cluster.run("scancel", "--signal=USR1", "--batch", job.number)
    known = job.steps()
    job.says("trainer has saved and stopped")
    exited = time.time()
    saved = max((job.directory / "checkpoints").glob("step-*"))
    step, saved_at = int(saved.name.removeprefix("step-")), saved.stat().st_mtime
    assert saved_at > sent and step <= _heard_at(job) + 1, "more than the step that ran was waited for"
    # Between two attempts of a requeued job there is nothing.
    job.until(lambda: not cluster.processes(), 30, "end of the first attempt's last process")
    job.until(lambda: f"attempt {job.number}-1" in job.log, 60, "restart")
    job.ends("COMPLETED", 180)
    assert read_metrics(job.directory) == uninterrupted[1]
    assert f"attempt {job.number}-1" in job.log and "resumed from" in job.everything()
    rows = _rows(job.directory)
    figures["signal"] = {
        "to_saved_s": round(saved_at - sent, 2),
        "to_exit_s": round(exited - sent, 2),
        "longest_step_s": round(max(row["time/step_s"] for row in rows if "time/step_s" in row), 2),
        "saved_step": step,
        "logged_when_signalled": known,
        "metrics_equal_to_an_uninterrupted_run": True,
    }


def test_from_the_signal_to_the_end_is_a_step_and_a_save(submit, figures, cluster):
    # Steps long enough to be told from the end of a process.
    job = submit(SCRIPT, "rlkd.group_size=64", "rlkd.num_prompts=8", "trainer.rlkd.save_interval=1")
    job.reaches(2)
    sent = time.time()
    cluster.run("scancel", "--signal=USR1", "--batch", job.number)
    known = job.steps()
    job.until(
        lambda: not any("train_rlkd" in command for command in cluster.processes().values()), 120, "end of the ranks"
    )
    gone = time.time()
    saves = {path: path.stat().st_mtime for path in (job.directory / "checkpoints").glob("step-*")}
    saved_at = max(saves.values())
    rows = _rows(job.directory)
    assert rows[-1]["step"] <= _heard_at(job) + 1 and saved_at > sent
    figures["one_step_and_a_save"] = {
        "to_saved_s": round(saved_at - sent, 2),
        "to_the_end_of_the_ranks_s": round(gone - sent, 2),
        "longest_step_s": round(max(row["time/step_s"] for row in rows[1:]), 2),
        "save_s": round(saved_at - rows[-1]["time"], 2),
        "steps_finished_after_the_signal": rows[-1]["step"] - known,
    }
    cluster.run("scancel", job.number)
    job.ends("CANCELLED")


def test_the_end_of_its_time_is_such_a_signal(submit, uninterrupted, cluster):
    # Slurm counts in minutes and may signal up to a minute early: a run that outlasts three of them.
    job = submit(SCRIPT, "trainer.rlkd.max_steps=4000", sbatch=("--time=3", "--signal=B:USR1@30"))
    job.says("given back to Slurm", 260)
    assert "SIGUSR1: trainer saves" in job.log
    job.until(lambda: f"attempt {job.number}-1" in job.log, 60, "restart")
    cluster.run("scancel", job.number)
    job.ends("CANCELLED")
    assert read_metrics(job.directory)[:6] == uninterrupted[1][:6]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train_rlkd.py",), "was ended without a word"),
        (("serve_gsrm.py",), "GSRM server ended with code -9"),
        (("launch.keeper",), "the component gsrm ended with code"),
    ],
    ids=["a rank", "the server", "the keeper"],
)
def test_a_component_that_dies_ends_the_job_with_its_last_words(submit, words, said, figures):
    job = submit(SCRIPT, "trainer.rlkd.max_steps=2000", "trainer.heartbeat_s=6")
    job.reaches(2)
    # Of two ranks the second; of a service the process itself and not the srun that started it.
    found = sorted(
        pid for pid, command in job.cluster.processes().items()
        if all(word in command for word in words) and not command.startswith(("srun", "/usr/bin/srun"))
    )  # fmt: skip
    killed = time.monotonic()
    os.kill(found[-1], signal.SIGKILL)
    job.ends("FAILED", 120)
    figures.setdefault("from_the_death_of_a_component_to_the_end_of_the_job_s", {})[words[0]] = round(
        time.monotonic() - killed, 1
    )
    assert said in job.log and "--- the last lines of" in job.log, job.everything()


def test_a_cancelled_job_leaves_nothing(submit, cluster):
    job = submit(SCRIPT, "trainer.rlkd.max_steps=2000")
    job.reaches(2)
    assert cluster.processes()
    cluster.run("scancel", job.number)
    job.ends("CANCELLED", 60)


def test_a_wrong_config_is_refused_before_submission(submit, cluster):
    said = submit(SCRIPT, "rlkd.group_size=0", check=False)
    assert "rlkd.group_size=0" in said
    assert not cluster.run("squeue", "-h")


def _heard_at(job):
    """The step after which the first rank heard the signal, as its own log has it: a busy machine delivers late."""
    said = (job.directory / "logs" / f"trainer.{job.number}-0.0.log").read_text()
    return int(re.search(r" 0 step (\d+) INFO rlkd_nemo\.lifecycle\.signals: SIGUSR1: stopping", said)[1])


def _rows(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
