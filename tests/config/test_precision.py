"""Rules of FP8 and of the layers it needs: nothing that Megatron would drop without a word is accepted."""

import importlib.util

import pytest

from rlkd_nemo.config import precision
from rlkd_nemo.config.load import load
from rlkd_nemo.config.memory import has_transformer_engine
from rlkd_nemo.config.rules import check
from rlkd_nemo.config.schema import Model

# Sides that divide by 16 on two ranks, and what FP8 asks of precision and objective.
GOOD = [
    "model.fp8=hybrid", "trainer.precision=bf16", "objective.tis_cap=2", "model.hidden_size=128",
    "model.ffn_hidden_size=256", "model.num_query_groups=2",
]  # fmt: skip


@pytest.fixture
def te(monkeypatch):
    monkeypatch.setattr(precision, "has_transformer_engine", lambda: True)


def test_fp8_is_accepted_where_transformer_engine_is(te):
    assert check(load("rlkd_demo", GOOD)) == []
    ends = ["model.fp8_recipe=tensorwise", "model.first_last_layers_bf16=true", "model.num_layers_at_end_in_bf16=2"]
    assert check(load("rlkd_demo", GOOD + ends)) == []
    assert check(load("rlkd_demo", [*GOOD, "model.fp8_amax_history_len=1024", "model.fp8_amax_compute_algo=max"])) == []


@pytest.mark.parametrize("asked", ["model.fp8=hybrid", "model.transformer_impl=transformer_engine"])
def test_without_transformer_engine_one_error_names_the_extra(monkeypatch, asked):
    monkeypatch.setattr(precision, "has_transformer_engine", lambda: False)
    found = check(load("rlkd_demo", [*GOOD[1:], asked]))
    assert len(found) == 1
    assert asked in found[0]
    assert "pip install 'rlkd_nemo[fp8]'" in found[0]


@pytest.mark.parametrize(
    ("installed", "accepted"), [({"torch"}, False), (set(), True), ({"torch", "transformer_engine"}, True)]
)
def test_a_login_node_without_torch_leaves_the_question_to_the_ranks(monkeypatch, installed, accepted):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in installed else None)
    assert has_transformer_engine() == accepted


def test_fp8_asks_supervised_training_for_no_correction_of_rollouts(te):
    cfg = load("sft_demo", [*GOOD, "objective.tis_cap=null"])
    assert len(check(cfg)) == 1
    assert check(cfg, supervised=True) == []


CASES = [
    ("model.fp8=e5m2", "model.fp8='e5m2'", "e4m3, hybrid"),
    ("model.transformer_impl=local", "model.transformer_impl=local", "high precision without a word"),
    ("trainer.precision=32", "trainer.precision=32", "bf16"),
    ("trainer.accelerator=cpu", "trainer.accelerator=cpu", "GPUs only"),
    ("objective.tis_cap=null", "objective.tis_cap", "importance sampling"),
    ("model.first_last_layers_bf16=true", "model.first_last_layers_bf16=True", "fp8_recipe=delayed"),
    ("model.fp8_recipe=blockwise model.fp8_margin=1", "model.fp8_margin=1", "fp8_recipe=blockwise"),
    ("model.fp8_recipe=tensorwise model.fp8_amax_history_len=16", "model.fp8_amax_history_len=16", "tensorwise"),
    ("model.fp8_recipe=mxfp8 model.fp8_wgrad=false", "model.fp8_wgrad=False", "mxfp8"),
    ("model.fp8_recipe=mxfp8 model.hidden_size=144", "model.hidden_size = 144", "multiple of 32"),
    ("model.fp8_multi_head_attention=true", "model.fp8_multi_head_attention=True", "fp8_dot_product_attention"),
    ("model.num_layers_at_start_in_bf16=2", "model.num_layers_at_start_in_bf16=2", "first_last_layers_bf16"),
    ("model.fp8_recipe=tensorwise model.first_last_layers_bf16=true model.num_layers_at_start_in_bf16=3",
     "model.num_layers_at_start_in_bf16", "leaves none"),
    ("model.fp8_recipe=tensorwise model.first_last_layers_bf16=true model.num_layers_at_start_in_bf16=3 "
     "model.pipeline_model_parallel_size=2 trainer.devices=4", "model.num_layers_at_start_in_bf16=3", "2 layers"),
    ("model.hidden_size=104", "model.hidden_size = 104", "multiple of 16"),
    ("model.ffn_hidden_size=240", "model.ffn_hidden_size / model.tensor_model_parallel_size = 120", "multiple of 16"),
    ("model.fp8=null gate.max_log_prob_gap_fp8=0.2", "gate.max_log_prob_gap_fp8=0.2", "model.fp8 is null"),
    ("model.fp8=null model.fp8_recipe=blockwise", "model.fp8_recipe=blockwise", "model.fp8 is null"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "key", "told"), CASES, ids=[case[0] for case in CASES])
def test_a_broken_rule_is_one_sentence(te, overrides, key, told):
    found = check(load("rlkd_demo", GOOD + overrides.split()))
    matching = [sentence for sentence in found if key in sentence and told in sentence]
    assert len(matching) == 1, found


@pytest.mark.parametrize(
    ("fp8", "recipe", "multiple"), [(None, "mxfp8", 1), ("hybrid", "blockwise", 16), ("e4m3", "mxfp8", 32)]
)
def test_tokens_come_in_blocks(fp8, recipe, multiple):
    assert precision.fp8_multiple(Model(fp8=fp8, fp8_recipe=recipe)) == multiple
