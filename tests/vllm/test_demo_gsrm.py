"""make demo-gsrm in small: a GSRM trained here, behind a real vLLM, rewards free text as the rules do."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ranks import ROOT

PYTHON = os.environ.get("RLKD_VLLM_PYTHON")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not PYTHON, reason="needs vLLM in an environment of its own: make test-vllm"),
]
# A student that is hardly trained, and few rollouts; the GSRM itself, and what it must reach, are the demo's.
SMALL = [
    "demo.base.steps=300", "demo.teacher.steps=60", "demo.student.steps=30", "demo.min_teacher_accuracy=0",
    "demo.test_problems=20", "demo.test_samples=2", "trainer.rlkd.max_steps=4", "rlkd.num_prompts=8",
    "trainer.rlkd.val_check_interval=4", "validation.num_problems=10", "validation.samples=2",
]  # fmt: skip


def command(directory):
    return [sys.executable, str(ROOT / "examples/demo_gsrm.py"), f"exp_manager.exp_dir={directory}", *SMALL]


def left_over(directory):
    """Processes that still name the demo's directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(directory) in line and int(entry.parent.name) != os.getpid():
            found.append(line)
    return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    directory = tmp_path_factory.mktemp("demo_gsrm")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command(directory), env=environment, stderr=subprocess.PIPE, text=True, timeout=2000)
    assert done.returncode == 0, done.stderr[-6000:]
    assert not left_over(directory)
    return directory


@pytest.mark.timeout(2400)
def test_the_figures(demo):
    summary = json.loads((demo / "summary.json").read_text())
    print({name: value for name, value in summary.items() if name.startswith(("gsrm_", "reward_", "seconds_"))})
    assert summary["gsrm_parse_rate"] >= 0.95 and summary["gsrm_step_f1"] >= 0.9
    assert summary["gsrm_held_out_rows"] >= 290 and summary["gsrm_failures"] == 0
    assert summary["reward_rollouts"] == 4 * 8 * 8 and summary["reward_agreement"] >= 0.95
    assert summary["reward_distinct"] > 2  # agreement on one value would say little
    assert (demo / "report.html").is_file()
    # vLLM was held to the schema, not merely asked for it.
    assert "constrained by vllm" in (demo / "serve_gsrm.log").read_text()


@pytest.mark.timeout(300)
def test_interrupted_while_vllm_starts_it_leaves_nothing_behind(demo):
    process = subprocess.Popen(
        command(demo), env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    try:
        seen = []
        for line in process.stderr:
            seen.append(line)
            if "[3/6]" in line:
                break
        assert any("the GSRM is there already" in line for line in seen), seen
        end = time.monotonic() + 60
        while not any("vllm" in line and "serve" in line for line in left_over(demo)) and time.monotonic() < end:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 3
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    end = time.monotonic() + 15
    while left_over(demo) and time.monotonic() < end:
        time.sleep(0.1)
    assert not left_over(demo)
