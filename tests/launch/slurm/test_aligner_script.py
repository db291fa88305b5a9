"""slurm/aligner_rlkd.sh with stand-ins for Slurm's commands: what is started, and that both parts end together."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
STAND_INS = {
    "scontrol": "echo n1",
    # Notes its options and runs what follows them, with its log as srun's --output says.
    "srun": """echo "srun $*" >> "$NOTES"
while [[ $1 == --* ]]; do [[ $1 != --output=*server.log ]] || exec > "${1#--output=}" 2>&1; shift; done
exec "$@\"""",
    "python": """echo "$*" >> "$NOTES"
case $1 in
  *serve*) echo 'no problem could be read'; echo $$ > "$NOTES.server"; eval "$SERVER" ;;
  *train*) echo $$ > "$NOTES.actor"; eval "$ACTOR" ;;
esac""",
}
FOREVER = "exec sleep 600"


@pytest.fixture
def job(tmp_path):
    """`job(server, actor)`: shell lines in place of the two programs; what the script ended with, and the notes."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in STAND_INS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    notes = tmp_path / "notes"

    def run(server, actor):
        environment = {
            **os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "NOTES": str(notes), "SERVER": server, "ACTOR": actor,
            "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2",
            "SLURM_NTASKS_PER_NODE": "8", "STUDENT": "/models/student.nemo", "TEACHER": "/models/teacher.nemo",
            "DATA": "/data", "TOKENIZER": "/models/tokenizer", "RESULTS": str(tmp_path / "results"),
        }  # fmt: skip
        command = ["bash", str(ROOT / "slurm/aligner_rlkd.sh"), "model.optim.lr=1e-6"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        for part in ("server", "actor"):
            pid = int(Path(f"{notes}.{part}").read_text())
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        return done, notes.read_text()

    return run


def test_the_actor_ends_the_job_and_the_server_with_it(job, tmp_path):
    done, notes = job(FOREVER, "sleep 0.5")
    assert done.returncode == 0, done.stderr
    (actor,) = (line for line in notes.splitlines() if line.startswith("srun") and "train_gpt_rlkd_actor" in line)
    # A rank that fails must not leave the others waiting, and what is not saved in time is lost.
    assert "--kill-on-bad-exit=1" in actor and "exp_manager.max_time_per_run=00:03:30:00" in actor
    assert "trainer.num_nodes=2 trainer.devices=8" in actor and actor.endswith("model.optim.lr=1e-6")
    mounts = actor.split("--container-mounts=")[1].split()[0].split(",")
    wanted = ["/data", "/models", "/models/tokenizer", str(ROOT), str(tmp_path / "results")]
    assert sorted(mounts) == sorted(f"{path}:{path}" for path in wanted)


def test_an_actor_that_fails_fails_the_job(job):
    done, _ = job(FOREVER, "sleep 0.5; exit 2")
    assert done.returncode == 2


def test_a_server_that_dies_ends_the_job_with_its_last_lines(job):
    done, _ = job("sleep 0.5; exit 3", FOREVER)
    assert done.returncode == 1
    assert "no problem could be read" in done.stderr and "the reward server ended with code 3" in done.stderr
