"""Settings and what is installed to Megatron's arguments, without Transformer Engine or a GPU; then what really runs."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from megatron.core.models.gpt import gpt_layer_specs

from rlkd_nemo.config.schema import Model
from rlkd_nemo.engine.model.precision import Installed, implementation, layer_spec, precision_arguments
from rlkd_nemo.engine.pipeline import prepare_micro_batches
from rlkd_nemo.errors import ConfigError
from rlkd_nemo.training.batch import SequenceBatch
from tests.ranks import launch

HOPPER = Installed((9, 0), transformer_engine=True)
BARE_GPU = Installed((9, 0))
CPU = Installed()
FP8 = Model(
    hidden_size=128, ffn_hidden_size=256, tensor_model_parallel_size=1, fp8="hybrid", fp8_recipe="tensorwise",
    first_last_layers_bf16=True, num_layers_at_end_in_bf16=2,
)  # fmt: skip
DELAYED = dataclasses.replace(
    FP8, fp8="e4m3", fp8_recipe="delayed", fp8_amax_history_len=1024, first_last_layers_bf16=False
)


@pytest.mark.parametrize(
    ("asked", "has", "got"),
    [
        ("auto", CPU, "local"),
        ("auto", BARE_GPU, "local"),
        ("auto", HOPPER, "transformer_engine"),
        ("local", HOPPER, "local"),
        ("transformer_engine", HOPPER, "transformer_engine"),
    ],
)
def test_which_layers(asked, has, got):
    assert implementation(Model(transformer_impl=asked), has) == got


def test_fp8_chooses_transformer_engine_or_is_refused():
    assert implementation(FP8, HOPPER) == "transformer_engine"
    with pytest.raises(ConfigError, match=r"pip install 'rlkd_nemo\[fp8\]'"):
        implementation(FP8, BARE_GPU)
    with pytest.raises(ConfigError, match=r"rlkd_nemo\[fp8\]"):
        implementation(Model(transformer_impl="transformer_engine"), CPU)
    with pytest.raises(ConfigError, match="transformer_impl=local"):
        implementation(dataclasses.replace(FP8, transformer_impl="local"), HOPPER)


def test_fp8_arguments():
    got = precision_arguments(FP8, "bf16", HOPPER)
    assert (got["fp8"], got["fp8_recipe"], got["bf16"], got["params_dtype"]) == (
        "hybrid", "tensorwise", True, torch.bfloat16,
    )  # fmt: skip
    assert (got["first_last_layers_bf16"], got["num_layers_at_start_in_bf16"], got["num_layers_at_end_in_bf16"]) == (
        True, 1, 2,
    )  # fmt: skip
    got = precision_arguments(DELAYED, "bf16", HOPPER)
    assert (got["fp8"], got["fp8_recipe"], got["fp8_amax_history_len"], got["fp8_amax_compute_algo"]) == (
        "e4m3", "delayed", 1024, "most_recent",
    )  # fmt: skip
    assert not any(key.startswith("fp8") for key in precision_arguments(Model(), "bf16", HOPPER))


@pytest.mark.parametrize(
    ("recipe", "capability", "runs"),
    [
        ("delayed", (8, 0), False),
        ("delayed", (8, 9), True),
        ("blockwise", (8, 9), False),
        ("blockwise", (9, 0), True),
        ("mxfp8", (9, 0), False),
        ("mxfp8", (10, 0), True),
    ],
)
def test_a_recipe_needs_its_hardware(recipe, capability, runs):
    model = dataclasses.replace(DELAYED, fp8_recipe=recipe, fp8_amax_history_len=1)
    has = Installed(capability, transformer_engine=True)
    if runs:
        assert precision_arguments(model, "bf16", has)["fp8_recipe"] == recipe
    else:
        with pytest.raises(ConfigError, match=f"fp8_recipe={recipe} needs a GPU"):
            precision_arguments(model, "bf16", has)


def test_a_teacher_of_other_sizes_is_checked_when_it_is_built():
    with pytest.raises(ConfigError, match="ffn_hidden_size"):
        precision_arguments(dataclasses.replace(FP8, ffn_hidden_size=250), "bf16", HOPPER)


@pytest.mark.parametrize(("model", "precision"), [(FP8, "32"), (Model(), "16")])
def test_precisions_that_there_are_not(model, precision):
    with pytest.raises(ConfigError, match=f"trainer.precision='?{precision}"):
        precision_arguments(model, precision, HOPPER)


def test_fused_kernels_where_they_are():
    keys = ("gradient_accumulation_fusion", "apply_rope_fusion", "bias_activation_fusion")
    full = Installed((9, 0), transformer_engine=True, apex_weight_gradients=True, compiler=True)
    assert [precision_arguments(Model(), "bf16", full)[key] for key in keys] == [True] * 3
    assert [precision_arguments(Model(), "bf16", CPU)[key] for key in keys] == [False] * 3
    # The fused rotation has no place for YaRN's scale.
    assert not precision_arguments(Model(), "bf16", full, plain_rope=False)["apply_rope_fusion"]
    for key in ("persist_layer_norm", "masked_softmax_fusion"):
        assert precision_arguments(Model(), "bf16", full)[key] is False


def test_the_layers_of_transformer_engine_are_megatrons(monkeypatch):
    """A stand-in for the package: what is asked for, and which norm comes last."""
    monkeypatch.setattr(gpt_layer_specs, "get_gpt_layer_with_transformer_engine_spec", lambda **asked: asked)
    monkeypatch.setattr(gpt_layer_specs, "TENorm", "norm", raising=False)
    assert layer_spec(Model(qk_layernorm=True), HOPPER) == ({"qk_layernorm": True}, "norm")


def test_micro_batches_come_in_blocks_for_fp8():
    """Ragged rows in: what reaches the layers of a rank is a multiple of 16 tokens, under sequence parallelism too."""
    ranks = SimpleNamespace(dp_size=1, dp_rank=0, cp_size=1, cp_rank=0)
    rows = SequenceBatch([[1] * 5, [2] * 3], [[3] * 12, [4] * 30], [torch.ones(12), torch.ones(30)])
    for model, sequence_parallel, length in ((Model(), False, 33), (FP8, False, 48), (FP8, True, 64)):
        config = SimpleNamespace(
            tensor_model_parallel_size=2, sequence_parallel=sequence_parallel, context_parallel_size=1
        )
        (micro,), _ = prepare_micro_batches(rows, model, config, ranks, 0, forward_only=False)
        assert micro.tokens.shape == (2, length)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    path = tmp_path_factory.mktemp("precision") / "seen.json"
    launch(Path(__file__).with_name("precision_ranks.py"), 1, path)
    return json.loads(path.read_text())


@pytest.mark.ranks
def test_megatron_alone_ignores_fp8_and_we_do_not(seen):
    assert seen["megatron_fp8_ran_bitwise_in_high_precision"] == dict.fromkeys(
        ("delayed", "tensorwise", "blockwise", "mxfp8"), True
    )
    assert "rlkd_nemo[fp8]" in seen["ours"]


@pytest.mark.ranks
def test_bf16_has_fp32_masters_gradients_and_log_probs(seen):
    assert seen["dtypes"] == {
        "parameters": ["torch.bfloat16"], "masters": ["torch.float32"], "moments": ["torch.float32"],
        "gradients": ["torch.float32"], "log_probs": ["torch.float32"], "in_the_loss": ["torch.float32"],
    }  # fmt: skip
    # Updates far below a bf16 digit: the masters move, where bf16 weights would have stood still.
    assert seen["masters_moved"] > 0
    assert seen["bf16_log_prob_gap"] < 0.05


@pytest.mark.ranks
def test_checkpoints_have_transformer_engines_names(seen):
    """What Megatron's own layers store can be read into Transformer Engine's and the other way round."""
    names = set(seen["stored"])
    assert "decoder.layers.self_attention.linear_qkv.layer_norm_weight" in names
    assert "decoder.layers.mlp.linear_fc1.layer_norm_weight" in names
    assert not [name for name in names if "input_layernorm" in name or "pre_mlp_layernorm" in name]
    assert not [name for name in names if name.endswith("_extra_state")]
    assert seen["extra_state_in_a_delayed_training_state"]
    assert seen["missing_weight_refused"]


@pytest.mark.ranks
def test_transformer_engines_names_mean_the_same_tensors(seen):
    """Export, import and sampler on a model whose norms go by Transformer Engine's names."""
    assert seen["te_named_pieces"] == seen["pieces"]
    assert seen["te_named_parts"] == seen["parts"]
