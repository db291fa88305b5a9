"""What has no CPU build. Nothing of it has been run yet; each test says what a machine with a GPU would have to show."""

import os
import subprocess

import pytest

from tests.aligner import nemo_python as nemo
from tests.aligner.runs import EXAMPLE


def has_gpu():
    if not nemo.PYTHON:
        return False
    code = "import torch, tensorrt_llm, transformer_engine, apex; assert torch.cuda.is_available()"
    return subprocess.run([nemo.PYTHON, "-c", code], capture_output=True, timeout=300).returncode == 0


pytestmark = [
    pytest.mark.aligner,
    pytest.mark.gpu,
    pytest.mark.skipif(not has_gpu(), reason="needs a GPU, TensorRT-LLM, Transformer Engine and Apex (NGC container)"),
]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(["trainer.reinforce.trt_llm.enable=True"], id="TensorRT-LLM sampling and refit"),
        pytest.param(["+model.transformer_engine=True"], id="Transformer Engine layers"),
        pytest.param(["+model.transformer_engine=True", "+model.fp8=True", "+model.fp8_hybrid=True"], id="FP8"),
        pytest.param(["model.optim.name=distributed_fused_adam"], id="Apex distributed fused Adam"),
    ],
)
@pytest.mark.timeout(1800)
def test_a_step_runs(changes, tmp_path):
    # The models and the server are the site's own: RLKD_ALIGNER_GPU_ARGS has the overrides of a run that works there.
    arguments = os.environ.get("RLKD_ALIGNER_GPU_ARGS")
    if not arguments:
        pytest.skip("RLKD_ALIGNER_GPU_ARGS is not set")
    folder = f"exp_manager.explicit_log_dir={tmp_path}"
    nemo.run(EXAMPLE, *arguments.split(), folder, "trainer.reinforce.max_steps=1", *changes, timeout=1700)
