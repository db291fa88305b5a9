"""The environment that the constraints promise."""

import re
import shutil
from importlib import metadata
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU: torch may bring CUDA")
def test_torch_brings_no_cuda_where_there_is_no_gpu():
    assert torch.version.cuda is None


def test_pins_are_whole_and_megatron_is_the_tested_one():
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints/base.txt").read_text(), flags=re.M))
    assert pins["megatron-core"] == metadata.version("megatron-core")
    # Undeclared by megatron-core, yet its checkpoint writer hangs without it.
    assert pins["psutil"] == metadata.version("psutil")
    cpu = (ROOT / "constraints/cpu.txt").read_text()
    assert f"torch=={torch.__version__.partition('+')[0]}" in cpu and "-c base.txt" in cpu
