"""FP8 and Transformer Engine's layers on a GPU, against Megatron's own layers in bf16. Skipped, with the reason, elsewhere."""

import importlib.util
from pathlib import Path

import pytest

from tests.ranks import launch

SCRIPT = Path(__file__).with_name("precision_ranks.py")
TE = importlib.util.find_spec("transformer_engine") is not None
APEX = importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None
needs_te = pytest.mark.skipif(not TE, reason="needs Transformer Engine: pip install 'rlkd_nemo[fp8]'")


@pytest.fixture
def run(monkeypatch):
    """Run one case of the script on a rank with a GPU; it fails by raising."""
    return lambda *case: launch(SCRIPT, 1, *case, timeout=280, gpu=True)


@pytest.mark.gpu
@pytest.mark.ranks
@needs_te
def test_transformer_engines_layers_equal_megatrons(run):
    assert "CLOSE" in run("layers")


@pytest.mark.gpu
@pytest.mark.ranks
@needs_te
@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise"])
def test_an_fp8_update_is_finite_and_close_to_bf16(run, recipe):
    assert "CLOSE" in run("fp8", recipe)


@pytest.mark.gpu
@pytest.mark.ranks
@needs_te
def test_a_recipe_that_the_gpu_cannot_is_refused_before_it_runs(run):
    assert "REFUSED" in run("hardware")


@pytest.mark.gpu
@pytest.mark.ranks
@pytest.mark.skipif(not APEX, reason="needs apex built with its CUDA extensions (fused_weight_gradient_mlp_cuda)")
def test_weight_gradients_added_by_apex_are_the_same(run):
    assert "CLOSE" in run("apex")


@pytest.mark.gpu
@pytest.mark.ranks
def test_a_compiled_activation_gives_the_same_update(run):
    assert "CLOSE" in run("compiled")
