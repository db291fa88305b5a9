"""One small quickstart for all integration tests: real ranks, real checkpoints, seconds instead of minutes."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.ranks import PATIENCE_S, ROOT

# Without the extra gsrm these cannot be imported; tests/gsrm/service/test_extra.py says so.
if not all(map(find_spec, ("httpx2", "uvicorn", "starlette"))):
    collect_ignore = ["test_gsrm_service.py", "test_serve_gsrm.py"]

# Small enough for seconds; the models learn nothing worth having, the paths are all real.
SMALL = [
    "model.num_layers=2", "model.hidden_size=32", "model.ffn_hidden_size=48", "rlkd.num_prompts=4", "rlkd.group_size=4",
    "validation.num_problems=6", "validation.samples=2", "trainer.rlkd.val_check_interval=2", "rollout.max_new_tokens=40",
]  # fmt: skip


@dataclass
class Ended:
    """A finished command."""

    code: int
    out: str
    err: str


def run_example(name, *arguments, timeout=PATIENCE_S, launcher=()):
    """`python examples/<name>.py arguments...` as a user would, one thread a rank."""
    command = [sys.executable, *launcher, str(ROOT / "examples" / f"{name}.py"), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    return Ended(done.returncode, done.stdout, done.stderr)


def read_metrics(directory):
    """metrics.jsonl without what the clock decides."""
    lines = [json.loads(line) for line in (Path(directory) / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if not k.startswith("time") and k != "rollout/tokens_per_s"} for line in lines
    ]


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The run directory of a small quickstart; its student and teacher serve the other tests."""
    directory = tmp_path_factory.mktemp("demo")
    ended = run_example(
        "quickstart", *SMALL, f"exp_manager.exp_dir={directory}", "demo.base.steps=60", "demo.teacher.steps=20",
        "demo.student.steps=10", "demo.min_teacher_accuracy=0", "demo.test_problems=8", "demo.test_samples=2",
        "trainer.rlkd.max_steps=2",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    return directory


@pytest.fixture(scope="session")
def start(demo):
    """Overrides that start reinforcement learning from the demo's student under the demo's teacher."""
    return [
        *SMALL,
        f"model.restore_from_path={demo}/student/checkpoints/step-000010",
        f"teacher.restore_from_path={demo}/teacher/checkpoints/step-000020",
    ]
