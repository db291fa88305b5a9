"""What can be wrong with a Hugging Face directory: one clear error each, and the model is not touched; bf16."""

import json

from rlkd_nemo.engine.ranks import close_ranks, init_ranks

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlkd_nemo.config.load import load
from rlkd_nemo.config.schema import Model, RopeScaling
from rlkd_nemo.engine.actor import RLKDActor
from rlkd_nemo.engine.hugging_face.config import model_from_hugging_face, to_config
from rlkd_nemo.engine.hugging_face.files import TensorFiles
from rlkd_nemo.engine.hugging_face.load import load_hugging_face
from rlkd_nemo.engine.hugging_face.save import save_hugging_face
from rlkd_nemo.engine.model.build import build_model
from rlkd_nemo.engine.model.families import family_for
from rlkd_nemo.engine.state.meta import architecture_of
from rlkd_nemo.errors import ConfigError, InputError
from rlkd_nemo.losses.batch import TokenLoss
from rlkd_nemo.training.batch import SequenceBatch
from tests.engine.hugging_face.hugging_models import VOCAB, make

CURRENT = Model(encoder_seq_length=48, tensor_model_parallel_size=1)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    directory = tmp_path_factory.mktemp("qwen2")
    make("qwen2", directory)
    return directory


@pytest.fixture(scope="module")
def model(good):
    ranks = init_ranks()
    yield build_model(model_from_hugging_face(good, CURRENT), VOCAB, ranks)
    close_ranks()


@pytest.fixture
def bad(good, tmp_path):
    """A copy to spoil."""
    for file in good.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def refused(action, *words):
    with pytest.raises(InputError) as caught:
        action()
    for word in words:
        assert word in str(caught.value), caught.value


def unread(directory, model, *words):
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    refused(lambda: load_hugging_face(directory, model), *words)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def config(directory, **changes):
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def first_shard(directory):
    return sorted(directory.glob("*.safetensors"))[0]


def rewrite(directory, change):
    """Apply `change` to the tensors of one shard and keep the index in step."""
    shard = first_shard(directory)
    tensors = load_file(shard)
    change(tensors)
    save_file(tensors, shard)
    index = directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    others = {name: file for name, file in content["weight_map"].items() if file != shard.name}
    index.write_text(json.dumps({"weight_map": others | dict.fromkeys(tensors, shard.name)}))


def test_the_good_one_is_read(good, model):
    load_hugging_face(good, model)


def test_a_shard_cut_short(bad, model):
    shard = first_shard(bad)
    shard.write_bytes(shard.read_bytes()[:-100])
    unread(bad, model, shard.name, "cut short")


def test_a_shard_missing(bad, model):
    shard = first_shard(bad)
    shard.unlink()
    unread(bad, model, shard.name, "is missing")


def test_a_shard_of_another_model(bad, model):
    shards = sorted(bad.glob("*.safetensors"))
    shards[0].write_bytes(shards[1].read_bytes())
    unread(bad, model, shards[0].name, "disagree about")


def test_an_unreadable_index_and_no_weights(bad, model):
    index = bad / "model.safetensors.index.json"
    index.write_text("{")
    unread(bad, model, index.name, "weight_map")
    index.unlink()
    unread(bad, model, "neither", "model.safetensors")


def test_a_tensor_missing_and_one_left_over(bad, model):
    rewrite(bad, lambda tensors: tensors.update(strange=torch.zeros(2)))
    unread(bad, model, "left over strange")
    name = "model.embed_tokens.weight"
    rewrite(bad, lambda tensors: (tensors.pop("strange"), tensors.pop(name)))
    unread(bad, model, f"missing {name}")


def test_a_table_of_rotations_is_no_left_over(bad, model):
    key = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(bad, lambda tensors: tensors.update({key: torch.zeros(2)}))
    load_hugging_face(bad, model)


def test_another_type(bad, model):
    name = "model.embed_tokens.weight"
    rewrite(bad, lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    unread(bad, model, name, "I8", "BF16")


def test_config_and_weights_disagree(bad, model):
    other = "model.embed_tokens.weight"
    rewrite(bad, lambda tensors: tensors.update({other: torch.zeros(VOCAB, 16)}))
    unread(bad, model, other, "[61, 16]", "[61, 32]", "config.json")
    config(bad, intermediate_size=40)
    unread(bad, model, "another model", "ffn_hidden_size 40, wanted 48")
    config(bad, intermediate_size=48, tie_word_embeddings=False)
    unread(bad, model, "share_embeddings_and_output_weights False, wanted True")


def test_a_vocabulary_that_is_too_small_or_larger(bad, model, caplog):
    name = "model.embed_tokens.weight"
    rewrite(bad, lambda tensors: tensors.update({name: torch.cat([tensors[name], torch.ones(3, 32)])}))
    load_hugging_face(bad, model)
    assert "3 rows of the vocabulary have no id" in caplog.text
    # Rows without an id are not kept: ids 61 to 63 of the model pad its vocabulary.
    assert not model.hidden_model.embedding.word_embeddings.weight[VOCAB:].any()
    rewrite(bad, lambda tensors: tensors.update({name: tensors[name][:60]}))
    unread(bad, model, "60 rows", "61 ids", "model.tokenizer")


def test_another_tokenizer(bad, model):
    (bad / "tokenizer.json").write_text("{}")
    refused(lambda: load_hugging_face(bad, model, tokenizer_pieces=["a"]), "tokenizer.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, ["GPT2LMHeadModel", "LlamaForCausalLM", "Qwen3ForCausalLM"]),
        ({"architectures": None}, ["architectures", "MistralForCausalLM"]),
        ({"hidden_act": "gelu"}, ["hidden_act='gelu'", "'silu'"]),
        ({"attention_bias": True}, ["attention_bias=True"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ({"hidden_size": None}, ["no number for hidden_size"]),
        ({"use_sliding_window": True, "sliding_window": 32}, ["sliding_window=32", "encoder_seq_length=48"]),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1.0}}, ["longrope", "yarn"]),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, ["no factor"]),
        ({"rope_parameters": {"rope_theta": 1.0, "partial_rotary_factor": 0.5}}, ["partial_rotary_factor=0.5"]),
    ],
)
def test_a_config_that_asks_for_something_else(bad, changes, words):
    config(bad, **changes)
    refused(lambda: model_from_hugging_face(bad, CURRENT), *words)


def test_an_unreadable_config(tmp_path):
    refused(lambda: model_from_hugging_face(tmp_path, CURRENT), "config.json cannot be read")
    (tmp_path / "config.json").write_text("[1]")
    refused(lambda: model_from_hugging_face(tmp_path, CURRENT), "list", "object")


def test_rotary_settings_of_transformers_4_and_their_defaults(bad):
    config(bad, rope_parameters=None, rope_theta=500000.0, rope_scaling={"type": "yarn", "factor": 2.0})
    got = model_from_hugging_face(bad, CURRENT)
    # Nothing says what the context was: transformers takes max_position_embeddings.
    assert got.rotary_base == 500000.0
    assert got.rope_scaling == RopeScaling(type="yarn", factor=2.0, original_max_position_embeddings=64)
    assert (got.encoder_seq_length, got.max_position_embeddings) == (48, 64)


def test_families_are_chosen_by_what_their_members_have():
    assert family_for(Model()).model_type == "llama" and family_for(Model(), "mistral").model_type == "mistral"
    assert family_for(Model(add_qkv_bias=True)).model_type == "qwen2"
    with pytest.raises(ConfigError, match="wanted one of llama, mistral"):
        family_for(Model(), "lama")
    with pytest.raises(ConfigError, match="add_qkv_bias=True, model.qk_layernorm=True"):
        family_for(Model(add_qkv_bias=True, qk_layernorm=True))
    with pytest.raises(ConfigError, match="no model of llama"):
        family_for(Model(qk_layernorm=True), "llama")


def test_a_trained_bf16_model_starts_from_the_weights_and_is_written_in_bf16(good, model, tmp_path):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    (tokenizer / "config.json").write_text('{"eos_token_id": 7}')
    actor = RLKDActor(model.settings, VOCAB, model.ranks, pad_id=0, precision="bf16")
    load_hugging_face(good, actor)
    # An update that moves nothing writes the fp32 master weights over the model's: they must be the loaded ones.
    batch = SequenceBatch([[1, 2]], [[3, 4]], [torch.full((2,), 1e-30)])
    actor.scheduler.max_lr = 0.0
    actor.update(batch, lambda log_probs, mask, fields: TokenLoss(-log_probs * mask, {}))
    save_hugging_face(actor, tmp_path / "out", tokenizer)
    written, wanted = load_file(tmp_path / "out" / "model.safetensors"), TensorFiles(good)
    assert written.keys() == wanted.shapes.keys()
    for name, value in written.items():
        assert torch.equal(value, wanted.read(name).to(torch.bfloat16)), name
    config_now = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config_now["torch_dtype"] == "bfloat16" and config_now["eos_token_id"] == 7
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_only_what_is_asked_for_is_read(good):
    files = TensorFiles(good)
    assert files.largest_read == 0
    # Ten of 61 rows of 32 numbers in fp32, then two of 32 columns of 32.
    assert files.read("model.embed_tokens.weight", 0, 20, 30).shape == (10, 32)
    assert files.largest_read == 10 * 32 * 4
    assert files.read("model.layers.1.self_attn.o_proj.weight", 1, 30, 32).shape == (32, 2)
    assert files.largest_read == 10 * 32 * 4


@pytest.mark.parametrize(
    ("name", "family"),
    [("llama31_8b", "llama"), ("mistral_7b", "mistral"), ("qwen25_7b", "qwen2"), ("qwen3_8b", "qwen3")],
)
def test_a_config_written_for_a_known_model_reads_as_the_same_settings(name, family, tmp_path):
    settings = load("rlkd_demo", [f"model={name}"]).model
    family = family_for(settings, family)
    (tmp_path / "config.json").write_text(json.dumps(to_config(settings, 1000, family, "bfloat16")))
    assert architecture_of(model_from_hugging_face(tmp_path, Model())) == architecture_of(settings)
