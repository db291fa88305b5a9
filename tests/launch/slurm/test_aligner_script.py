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
while [[ $1 == --* ]]; do
  if [[ $1 == --output=* ]]; then log=${1#--output=}; exec > "${log/\\%t/0}" 2>&1; fi
  shift
done
exec "$@\"""",
    "apptainer": 'echo "apptainer $*" >> "$NOTES"\nwhile (($#)) && [[ $1 != *.sif ]]; do shift; done\nshift\nexec "$@"',
    "python": """echo "$*" >> "$NOTES"
case $1 in
  *serve*) echo 'no problem could be read'; echo $$ > "$NOTES.server"; eval "$SERVER" ;;
  *train*) echo 'no such model'; echo $$ > "$NOTES.actor"; eval "$ACTOR" ;;
esac""",
}
FOREVER = "exec sleep 600"
# The actor's: as soon as the server runs, and not before, so that each part has said its words.
SERVED = "while [[ ! -s $NOTES.server ]]; do sleep 0.05; done"


@pytest.fixture
def job(tmp_path):
    """`job(server, actor, runtime)`: shell lines in place of the two programs; what the script ended with, and the notes."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in STAND_INS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    notes = tmp_path / "notes"

    def run(server, actor, runtime="pyxis", **more):
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "RLKD"))},
            "PATH": f"{folder}:{os.environ['PATH']}", "NOTES": str(notes), "SERVER": server, "ACTOR": actor,
            "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2",
            "SLURM_NTASKS_PER_NODE": "8", "STUDENT": "/models/student.nemo", "TEACHER": "/models/teacher.nemo",
            "DATA": "/data", "TOKENIZER": "/models/tokenizer", "RESULTS": str(tmp_path / "results"),
            "RLKD_RUNTIME": runtime, "RLKD_PYTHON": str(folder / "python"), "RLKD_IMAGE_aligner": "/images/nemo.sif", **more,
        }  # fmt: skip
        command = ["bash", str(ROOT / "slurm/aligner_rlkd.sh"), "model.optim.lr=1e-6"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        for part in ("server", "actor"):
            pid = int(Path(f"{notes}.{part}").read_text())
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        return done, notes.read_text()

    return run


def test_the_actor_ends_the_job_and_the_server_with_it(job, tmp_path):
    done, notes = job(FOREVER, SERVED)
    assert done.returncode == 0, done.stderr
    (actor,) = (line for line in notes.splitlines() if line.startswith("srun") and "train_gpt_rlkd_actor" in line)
    # A rank that fails must not leave the others waiting, and what is not saved in time is lost.
    assert "--kill-on-bad-exit=1" in actor and "exp_manager.max_time_per_run=00:03:30:00" in actor
    assert "trainer.num_nodes=2 trainer.devices=8" in actor and actor.endswith("model.optim.lr=1e-6")
    mounts = actor.split("--container-mounts=")[1].split()[0].split(",")
    wanted = ["/data", "/models", "/models/tokenizer", str(ROOT), str(tmp_path / "results")]
    assert sorted(mounts) == sorted(f"{path}:{path}" for path in wanted)


def test_an_actor_that_fails_fails_the_job(job):
    done, _ = job(FOREVER, f"{SERVED}; exit 2")
    assert done.returncode == 2 and "no such model" in done.stderr


def test_a_server_that_dies_ends_the_job_with_its_last_lines(job):
    done, _ = job("while [[ ! -s $NOTES.actor ]]; do sleep 0.05; done; exit 3", FOREVER)
    assert done.returncode == 1
    assert "no problem could be read" in done.stderr and "the component reward_server ended with code 3" in done.stderr


def test_the_site_decides_what_it_runs_in(job):
    done, notes = job(FOREVER, SERVED, "apptainer", RLKD_MOUNTS="/scratch:/scratch")
    assert done.returncode == 0, done.stderr
    inside = f"apptainer exec --nv --bind {ROOT},/scratch:/scratch --pwd {ROOT} /images/nemo.sif"
    assert sum(line.startswith(inside) for line in notes.splitlines()) == 2
    before = notes
    done, notes = job(FOREVER, SERVED, "none")
    assert done.returncode == 0, done.stderr
    assert "--container" not in notes and "apptainer" not in notes.removeprefix(before)


def test_logs_of_each_attempt_stay(job, tmp_path):
    done, _ = job(FOREVER, SERVED, SLURM_RESTART_COUNT="1")
    assert done.returncode == 0, done.stderr
    logs = sorted(path.name for path in (tmp_path / "results" / "logs").iterdir())
    assert logs == ["actor.7-1.0.log", "reward_server.7-1.0.log"]


def test_outside_of_a_job_it_says_so(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    command = ["bash", str(ROOT / "slurm/aligner_rlkd.sh")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode != 0 and "submit this with sbatch" in done.stderr
