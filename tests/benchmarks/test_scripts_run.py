"""The benchmark scripts run end to end at a size that says nothing about speed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks import PATIENCE_S

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = [pytest.mark.slow, pytest.mark.ranks]


def run(script, *args):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / script, *args], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_gpu_step_on_a_cpu(tmp_path):
    out = tmp_path / "out.json"
    run("gpu_step.py", "--device", "cpu", "--rows", "1", "--repeats", "1", "--out", str(out))
    found = json.loads(out.read_text())
    assert found["parity_to_cpu"] == {"loss": 0.0, "gradients": 0.0}  # here both sides are the CPU
    # By hand, 2 layers of width 64, ffn 128, 4 heads of 16, 2 groups: 64*16*12 + 3*64*128 = 36,864 a layer; 64 tokens
    # x 2 layers x (2 x 36,864 + 2 x 64 x 64) = 10,485,760; output layer 56 tokens x 2 x 512 x 64 = 3,670,016.
    step = found["step"]
    flops = 10_485_760 + 3_670_016
    assert step["log_prob_mfu"] == pytest.approx(flops / step["log_prob_seconds"][0] / (step["ceiling_tflops"] * 1e12))


def test_token_logprobs_at_a_small_size(tmp_path):
    out = tmp_path / "out.json"
    args = ["--tokens", "64", "--vocab", "4096", "--hidden", "32", "--repeats", "1", "--recorded", "1"]
    run("token_logprobs.py", *args, "--sides", "ours", "naive", "--out", str(out))
    found = json.loads(out.read_text())
    assert [row["side"] for row in found["all_live"]] == ["ours", "naive"]
    assert all(row["memory_from"] == "measured" for row in found["all_live"])
    # Of the recorded batches' response tokens only some are live: that is what the figure is about.
    assert {row["objective"] for row in found["recorded"]} == {"trrd", "grpo"}
    assert all(0 < row["live_share_of_response_tokens"] <= 1 for row in found["recorded"])
