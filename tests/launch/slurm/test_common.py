"""slurm/common.sh with stand-ins for Slurm's commands and for the work: what runs in which container, and the end.

The real Slurm is in tests/slurm; here are the container runtimes, which no machine of ours has.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlkd_nemo.launch.local import _free_port as free_port

ROOT = Path(__file__).resolve().parents[3]
STAND_INS = {
    # Notes its options, and runs what follows them.
    "srun": 'echo "srun $*" >> "$NOTES"\nwhile [[ ${1-} == --* ]]; do shift; done\nexec "$@"',
    "apptainer": 'echo "apptainer $*" >> "$NOTES"\nwhile (($#)) && [[ $1 != *.sif ]]; do shift; done\nshift\nexec "$@"',
    "scontrol": 'echo "scontrol $*" >> "$NOTES"\n[[ $1 != requeue ]] || exit "$REQUEUE"\necho "NodeName=n1 NodeAddr=127.0.0.1"',
    "squeue": "[[ -z $ENDS ]] || echo $ENDS",
    # Our tools for real; in place of the work one rank that has saved.
    "python": f"""if [[ $1 == -m && $2 != *keeper ]]; then exec {sys.executable} "$@"; fi
echo "work $* key of ${{#RLKD_VLLM_KEY}} end=${{SLURM_JOB_END_TIME-}}" >> "$NOTES"
echo '{{"code": 3, "message": "stopped after step 4", "deliberate": true, "time": 1}}' > "$RLKD_REPORTS/0.json"
exit 3""",
}


def _ports():
    """Ones that are free, and that the system gives to nobody until the doctor tries them seconds later."""
    trainer = free_port()
    server = next(port for port in iter(free_port, None) if port != trainer)
    return [f"layout.trainer.port={trainer}", f"gsrm.server.port={server}"]


@pytest.fixture
def job(tmp_path):
    """`job(runtime, requeue=0)`: a script of slurm/; what it ended with, what it said, and the notes."""
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    notes = tmp_path / "notes"

    def run(runtime, requeue=0, ends="2030-01-01T00:00:00", script="single_node", more=(), **variables):
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "RLKD"))},
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "NOTES": str(notes), "REQUEUE": str(requeue), "ENDS": ends,
            "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1",
            "RLKD_RUNTIME": runtime, "RLKD_PYTHON": str(tmp_path / "python"), "RLKD_MOUNTS": "/models:/models",
            "RLKD_IMAGE_trainer": "/images/trainer.sif", **variables,
        }  # fmt: skip
        arguments = [
            "--config-name=rlkd_demo", "objective=grpo", "model.restore_from_path=null", "trainer.devices=1",
            "model.tensor_model_parallel_size=1", f"exp_manager.exp_dir={tmp_path / 'run'}", *_ports(), *more,
        ]  # fmt: skip
        command = ["bash", str(ROOT / f"slurm/{script}.sh"), *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
        return done, notes.read_text() if notes.exists() else ""

    return run


def test_pyxis_and_a_requeue(job):
    done, notes = job("pyxis")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "given back to Slurm" in done.stdout and "stopped after step 4" in done.stderr
    (work,) = (line for line in notes.splitlines() if line.startswith("srun") and "--job-name=trainer" in line)
    assert f"--container-image=/images/trainer.sif --container-mounts={ROOT}:{ROOT},/models:/models" in work
    assert f"--container-workdir={ROOT} --no-container-mount-home bash -c" in work
    tools = [line for line in notes.splitlines() if "rlkd_nemo.launch.slurm" in line]
    assert len(tools) == 3 and all("--ntasks=1 --container-image=" in line for line in tools)  # doctor, plan, ends
    assert notes.splitlines()[-1] == "scontrol requeue 7"


def test_apptainer_and_a_requeue_that_is_refused(job):
    done, notes = job("apptainer", requeue=1)
    assert done.returncode == 3 and "submit the same command again" in done.stderr, done.stdout + done.stderr
    inside = f"apptainer exec --nv --bind {ROOT},/models:/models --pwd {ROOT} /images/trainer.sif"
    assert sum(line.startswith(inside) for line in notes.splitlines()) == 4
    (work,) = (line for line in notes.splitlines() if line.startswith("work"))
    # Without SLURM_JOB_END_TIME the end is asked of squeue.
    assert work.startswith("work examples/train_rlkd.py --config-name=") and " end=1893" in work


def test_an_end_that_slurm_does_not_tell_is_none(job):
    done, notes = job("apptainer", ends="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " end=\n" in notes


def test_a_server_whose_secret_nobody_knows_says_so(job):
    served = {"script": "serve_gsrm", "more": ["gsrm.scorer=service", "layout.gsrm.nodes=1"]}
    done, _ = job("none", **served)
    assert done.returncode == 0 and "export RLKD_GSRM_TOKEN and submit again" in done.stdout, done.stdout + done.stderr
    done, _ = job("none", **served, RLKD_GSRM_TOKEN="mine")
    assert done.returncode == 0 and "RLKD_GSRM_TOKEN" not in done.stdout


def test_each_job_has_a_key_for_its_models(job):
    done, notes = job("none")
    assert done.returncode == 0 and " key of 44 " in notes, done.stdout + done.stderr
    done, notes = job("none", RLKD_VLLM_KEY="mine-and-nobodys-else")
    assert " key of 21 " in notes and "mine-and" not in notes + done.stdout + done.stderr


def test_another_runtime_is_refused(job):
    done, _ = job("docker")
    assert done.returncode == 2 and "RLKD_RUNTIME=docker; wanted none, pyxis or apptainer" in done.stderr
