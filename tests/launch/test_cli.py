"""The command line of an example, as a user meets it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlkd_nemo.config.load import load

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = '''"""An example."""
import os
from rlkd_nemo.config.load import cli

def main(cfg):
    from rlkd_nemo.errors import CheckpointError
    if cfg.name == "broken":
        raise CheckpointError("model.restore_from_path: nothing there")
    if cfg.name == "slip":
        raise ZeroDivisionError("ours")
    # One write: two ranks share the pipe, and print writes each piece by itself where Python is told not to buffer.
    os.write(1, f"main on {os.environ.get('RANK', 'no rank')} {cfg.objective.alpha}\\n".encode())

if __name__ == "__main__":
    cli(main, default="rlkd_demo", ranks=lambda cfg: cfg.trainer.devices, description=__doc__)
'''
ONE = ["trainer.devices=1", "model.tensor_model_parallel_size=1"]


@pytest.fixture
def example(tmp_path):
    path = tmp_path / "example.py"
    path.write_text(SCRIPT)

    def run(*args, **environment):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        command = [sys.executable, str(path), *args]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)

    return run


def test_help(example):
    done = example("--help")
    assert done.returncode == 0
    assert "An example." in done.stdout and "--config-name" in done.stdout and "exit codes" in done.stdout


def test_cfg_job_prints_what_loads_again(example, tmp_path):
    done = example("objective.alpha=0.3", "--cfg", "job", "trainer.rlkd.max_steps=2")  # options may stand between
    assert done.returncode == 0
    (tmp_path / "job.yaml").write_text(done.stdout)
    assert load("job", (), tmp_path) == load("rlkd_demo", ["objective.alpha=0.3", "trainer.rlkd.max_steps=2"])


def test_check_starts_nothing(example):
    done = example("--check")
    assert (done.returncode, done.stdout) == (0, "rlkd_demo: the config is valid\n")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["model.num_layer=2"], "did you mean model.num_layers?"),
        (["objective=grop"], "did you mean grpo?"),
        (["model.num_attention_heads=3"], "multiple of 2"),
        (["--config-name", "nothing"], "it has"),
        (["trainer.num_nodes=2"], "srun or torchrun"),
    ],
)
def test_a_mistake_ends_with_2_and_no_traceback(example, args, told):
    done = example(*args)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and told in done.stderr and "Traceback" not in done.stderr
    assert "main on" not in done.stdout


def test_a_traceback_on_demand(example):
    assert "Traceback" in example("model.num_layer=2", RLKD_TRACEBACK="1").stderr


@pytest.mark.ranks
def test_ranks_are_started_and_run_main(example):
    done = example("objective.alpha=0.3")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["main on 0 0.3", "main on 1 0.3"]


def test_one_rank_needs_no_other_process(example):
    done = example(*ONE)
    assert (done.returncode, done.stdout) == (0, "main on no rank 0.5\n")


def test_inside_a_rank_main_runs_here(example):
    done = example(RANK="1", WORLD_SIZE="2")
    assert (done.returncode, done.stdout) == (0, "main on 1 0.5\n")
    done = example(RANK="0", WORLD_SIZE="4")
    assert done.returncode == 2 and "WORLD_SIZE=4" in done.stderr and "asks for 2" in done.stderr


def test_how_main_ended_is_the_exit_code(example):
    done = example("name=broken", *ONE)
    assert done.returncode == 2
    assert "nothing there" in done.stderr and "Traceback" not in done.stderr
    done = example("name=slip", *ONE)
    assert done.returncode == 1 and "ZeroDivisionError: ours" in done.stderr  # our own slip: with its traceback


@pytest.mark.parametrize("name", ["train_sft", "train_gsrm"])
def test_supervised_commands_say_so_themselves(name):
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), "--check", "rlkd.group_size=1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for more, code in (([], 0), (["model.optim.offload_states=true"], 2)):
        done = subprocess.run(
            [*command, *more], env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == code, done.stderr
    assert done.stderr.count("error: ") == 1 and "supervised training, which samples none" in done.stderr
