"""Scripts of slurm/: what they run, and what is submitted in their place."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rlkd_nemo.config.load import load
from rlkd_nemo.errors import InputError
from rlkd_nemo.launch.slurm.jobs import header
from rlkd_nemo.launch.slurm.submit import kind_and_config, with_header
from rlkd_nemo.launch.slurm.submit import submit as submit_script

ROOT = Path(__file__).resolve().parents[3]
# The NeMo-Aligner plugin's script is of its own kind: its settings are NeMo-Aligner's.
OTHERS = ("common.sh", "site.sh", "submit.sh", "aligner_rlkd.sh")
JOBS = [path for path in sorted((ROOT / "slurm").glob("*.sh")) if path.name not in OTHERS]
RECORD = """#!/bin/bash
printf '%s\\n' "$@" "token of ${#RLKD_GSRM_TOKEN} ${RLKD_TOKEN_MADE-}" > "$RECORD"
while [[ $1 == -* ]]; do shift; done
cat "$1" >> "$RECORD"
"""


def test_a_server_is_submitted_without_the_models_of_a_trainer(submit, tmp_path):
    where = f"exp_manager.exp_dir={tmp_path}"
    missing = "model.restore_from_path=nowhere"
    done, submitted = submit("slurm/serve_gsrm.sh", *DEMO, missing, where)
    assert done.returncode == 0, done.stdout
    assert "hetjob" not in submitted
    done, _ = submit("slurm/single_node.sh", *DEMO, missing, where)
    assert done.returncode == 2 and "model.restore_from_path=nowhere" in done.stdout


def test_ports_of_the_login_node_say_nothing(submit, tmp_path):
    with socket.create_server(("", 0)) as busy:
        settings = [f"layout.trainer.port={busy.getsockname()[1]}", f"exp_manager.exp_dir={tmp_path}"]
        done, submitted = submit(
            "slurm/train_gsrm.sh",
            "--config-name=rlkd_demo",
            "model.restore_from_path=null",
            "objective=grpo",
            *settings,
        )
    assert done.returncode == 0 and submitted, done.stdout


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_the_lines_of_a_script_are_those_of_its_config(path):
    text = path.read_text()
    kind, config = kind_and_config(path.name, text)
    assert [line for line in text.splitlines() if line.startswith("#SBATCH")] == header(kind, config, load(config))


def test_the_header_is_replaced_where_it_stood():
    text = "#!/bin/bash\n# why\n#SBATCH --nodes=1\n#SBATCH hetjob\n#SBATCH --nodes=2\nset -e\n#SBATCH --late\n"
    assert with_header(text, ["#SBATCH --nodes=9"]) == "#!/bin/bash\n# why\n#SBATCH --nodes=9\nset -e\n"


@pytest.fixture
def submit(tmp_path):
    """`submit(*arguments)` with an `sbatch` that writes down what it was given."""
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(RECORD)
    sbatch.chmod(sbatch.stat().st_mode | stat.S_IXUSR)
    record = tmp_path / "record"

    def run(*arguments, command=(str(ROOT / "slurm/submit.sh"),), **more):
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLURM")},
            "PATH": f"{sbatch.parent}:{os.environ['PATH']}", "RECORD": str(record),
            "RLKD_PYTHON": sys.executable, "RLKD_RUNTIME": "none", **more,
        }  # fmt: skip
        done = subprocess.run(
            [*command, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240
        )
        return done, record.read_text() if record.exists() else None

    return run


# A layout that fits into this machine; the models of rlkd_demo need not be there to be submitted.
DEMO = ["--config-name=rlkd_demo", "layout=cpu_loopback", "model.restore_from_path=null", "objective=grpo"]


def test_a_right_config_is_submitted_with_its_own_options(submit, tmp_path):
    done, submitted = submit("slurm/single_node.sh", *DEMO, f"exp_manager.exp_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --nodes=2" in submitted and "#SBATCH hetjob" in submitted and "gpus" not in submitted
    assert submitted.splitlines()[1:3] == DEMO[:2]  # what the job itself gets
    assert "token of 44 yes\n" in submitted  # made for this job
    _, submitted = submit("slurm/single_node.sh", *DEMO, f"exp_manager.exp_dir={tmp_path}", RLKD_GSRM_TOKEN="mine")
    assert "token of 4 \n" in submitted


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["slurm/single_node.sh", "model.num_layer=3"], "did you mean model.num_layers"),
        (["slurm/single_node.sh", *DEMO, "rlkd.group_size=0"], "rlkd.group_size=0"),
        (["slurm/common.sh"], "no line `rlkd_job"),
        (
            ["rlkd_70b_to_8b", *DEMO],
            "there is no such file; wanted a script, and then config and overrides: slurm/decom",
        ),
    ],
)
def test_a_wrong_config_is_refused_before_anything_is_submitted(submit, arguments, said):
    done, submitted = submit(*arguments)
    assert done.returncode == 2 and said in done.stderr + done.stdout, done.stderr
    assert submitted is None


def test_a_script_started_by_hand_submits_itself(submit, tmp_path):
    mine = [*DEMO, f"exp_manager.exp_dir={tmp_path}"]
    by_hand = ("bash", os.path.relpath(ROOT / "slurm/train_gsrm.sh", tmp_path))  # from any folder
    done, submitted = submit(*mine, "rlkd.group_size=0", command=by_hand)
    assert done.returncode == 2 and "rlkd.group_size=0" in done.stdout and submitted is None
    done, submitted = submit(*mine, "--sbatch=--time=5", command=by_hand)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = submitted.splitlines()
    assert lines[0] == "--time=5" and lines[2:4] == DEMO[:2] and lines[-1] == 'rlkd_job train_gsrm gsrm_7b "$@"'


def test_it_is_the_checkout_that_submits(submit, tmp_path):
    # A login node needs three libraries and no installation of ours; where there is one, it may be an older copy.
    login = tmp_path / "python"
    login.write_text('#!/usr/bin/env bash\necho "path=$PYTHONPATH"\n')
    login.chmod(0o755)
    done, _ = submit("slurm/single_node.sh", RLKD_LOGIN_PYTHON=str(login), PYTHONPATH="/elsewhere")
    assert done.stdout == f"path={ROOT}:/elsewhere\n"


def test_without_slurm_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="sbatch is not on PATH"):
        submit_script(str(ROOT / "slurm/single_node.sh"), [], [])


def test_every_job_script_looks_alike():
    assert JOBS
    for path in JOBS:
        lines = path.read_text().splitlines()
        assert "set -euo pipefail" in lines and "source slurm/common.sh" in lines, path.name
        assert 'cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"' in lines, path.name
        assert lines[-1].startswith("rlkd_job ") and os.access(path, os.X_OK), path.name
    for path in (ROOT / "slurm").glob("*.sh"):
        assert "sleep" not in path.read_text().split() and "$((" not in path.read_text(), path.name
        subprocess.run(["bash", "-n", str(path)], check=True)
