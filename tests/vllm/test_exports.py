"""A real vLLM loads what the engine exports and gives the log-probs of the model that came in."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from tests.engine.hugging_face.hugging_models import IDS, MODELS, make
from tests.ranks import launch

HERE = Path(__file__).parent
PYTHON = os.environ.get("RLKD_VLLM_PYTHON")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not PYTHON, reason="needs vLLM in an environment of its own: make test-vllm"),
]
# vLLM's CPU attention has kernels for heads of 32 and more.
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


@pytest.mark.timeout(900)
def test_vllm_gives_the_log_probs_of_every_exported_family(tmp_path):
    # Qwen2 has no head_dim of its own: heads of 32 come from the width.
    sizes = {name: SIZES if name != "qwen2" else {**SIZES, "num_attention_heads": 2} for name in MODELS}
    wanted = {name: make(name, tmp_path / name, **sizes[name]) for name in MODELS}
    launch(HERE / "export_ranks.py", 2, 2, tmp_path, *MODELS, timeout=200)
    exports = {str(tmp_path / f"{name}-export"): name for name in MODELS}
    done = subprocess.run(
        [PYTHON, str(HERE / "vllm_side.py"), ",".join(map(str, IDS)), *exports],
        env={**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    got = json.loads(done.stdout.splitlines()[-1])
    gaps = {
        name: float((torch.tensor(got[path], dtype=torch.float64) - wanted[name]).abs().max())
        for path, name in exports.items()
    }
    print("largest difference of a log-prob, vLLM to transformers:", gaps)
    assert max(gaps.values()) <= 1e-4, gaps
