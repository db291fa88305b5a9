"""Hugging Face directories at the command line: converted both ways, and named as start and reference of a run."""

import pytest
from safetensors.torch import load_file

from tests.engine.hugging_face.hugging_models import make
from tests.integration.conftest import read_metrics, run_example


def tensors(directory):
    return {name: value for file in directory.glob("*.safetensors") for name, value in load_file(file).items()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    directory = tmp_path_factory.mktemp("hugging") / "qwen3"
    make("qwen3", directory)
    return directory


@pytest.mark.ranks
def test_both_ways_keep_every_number_of_an_id(source, tmp_path):
    ended = run_example("convert_checkpoint", f"convert.source={source}", f"convert.target={tmp_path}/checkpoints")
    assert ended.code == 0, ended.err
    assert "rows of the vocabulary have no id in the tokenizer" in ended.err
    checkpoint = tmp_path / "checkpoints/step-000000"
    ended = run_example("convert_checkpoint", f"convert.source={checkpoint}", f"convert.target={tmp_path}/back")
    assert ended.code == 0, ended.err
    first, second = tensors(source), tensors(tmp_path / "back")
    assert first.keys() == second.keys()
    # The task has fewer ids than the 61 rows of the source's vocabulary.
    assert all(value.equal(first[name][: value.shape[0]]) for name, value in second.items())
    assert second["lm_head.weight"].shape[0] < 61

    ended = run_example("convert_checkpoint", f"convert.source={source}", f"convert.target={tmp_path}/back")
    assert ended.code == 2 and "exists already" in ended.err
    ended = run_example("convert_checkpoint", f"convert.source={source}")
    assert ended.code == 2 and "convert.target is not set" in ended.err


@pytest.mark.ranks
def test_a_run_starts_from_hugging_face(source, tmp_path):
    own = [
        "model.num_layers=2", "model.hidden_size=32", "model.ffn_hidden_size=48", "model.kv_channels=16",
        "model.qk_layernorm=true", "model.layernorm_epsilon=1e-6", "model.rotary_base=5000", "model.rope_scaling.type=yarn",
        "model.rope_scaling.factor=4", "model.rope_scaling.original_max_position_embeddings=16",
        "model.rope_scaling.attention_factor=1.3",
    ]  # fmt: skip
    small = [
        "trainer.rlkd.max_steps=1", "rlkd.num_prompts=2", "rlkd.group_size=4", "rollout.max_new_tokens=24",
        "validation.num_problems=2", "validation.samples=1", f"exp_manager.exp_dir={tmp_path}/run",
        f"model.restore_from_path={source}", "teacher.restore_from_path=null", "objective=grpo",
    ]  # fmt: skip
    ended = run_example("train_rlkd", *own, *small, "objective.reference_kl=0.1", "model.optim.sched.warmup_steps=0")
    assert ended.code == 0, ended.err
    assert read_metrics(tmp_path / "run")[-1]["step"] == 1
    ended = run_example("train_rlkd", *small, "model.optim.sched.warmup_steps=0", f"exp_manager.exp_dir={tmp_path}/two")
    assert ended.code == 2 and "another model" in ended.err and "qk_layernorm True, wanted False" in ended.err
