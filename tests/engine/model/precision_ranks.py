"""One rank: what Megatron does with FP8 settings by itself, what bf16 is made of, and names across implementations."""

import dataclasses
import json
import pathlib
import sys

from rlkd_nemo.engine.ranks import close_ranks, init_ranks

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

from rlkd_nemo.config.schema import Model, Optim
from rlkd_nemo.engine.actor import RLKDActor
from rlkd_nemo.engine.generate.collect import WeightCollector
from rlkd_nemo.engine.hugging_face.tensors import pieces
from rlkd_nemo.engine.model.build import build_model, transformer_config
from rlkd_nemo.engine.state.distributed import each
from rlkd_nemo.engine.state.layers import fill, model_state
from rlkd_nemo.errors import ConfigError
from rlkd_nemo.losses.batch import TokenLoss
from rlkd_nemo.training.batch import SequenceBatch

VOCAB = 32
SETTINGS = Model(
    num_layers=2, hidden_size=64, ffn_hidden_size=128, num_attention_heads=4, num_query_groups=2,
    tensor_model_parallel_size=1, encoder_seq_length=32, qk_layernorm=True,
)  # fmt: skip
TOKENS = torch.arange(32).view(2, 16) % VOCAB
RECIPES = ("delayed", "tensorwise", "blockwise", "mxfp8")


def megatron_alone(seen):
    """Megatron's own model and layers with FP8 set: no error, and the bits of the model without."""
    torch.manual_seed(1)
    config = transformer_config(SETTINGS)
    built = GPTModel(config, get_gpt_layer_local_spec(qk_layernorm=True, normalization="RMSNorm"), VOCAB, 32,
                     position_embedding_type="rope")  # fmt: skip
    positions = torch.arange(16).expand_as(TOKENS)

    def logits():
        with torch.no_grad():
            return built(TOKENS, positions, None)

    plain = logits()
    same = {}
    for recipe in RECIPES:
        with_fp8 = dataclasses.replace(config, fp8="hybrid", fp8_recipe=recipe)
        for module in built.modules():
            if hasattr(module, "config"):
                module.config = with_fp8
        same[recipe] = torch.equal(logits(), plain)
    seen["megatron_fp8_ran_bitwise_in_high_precision"] = same


def refused(ranks, seen):
    try:
        build_model(dataclasses.replace(SETTINGS, fp8="hybrid"), VOCAB, ranks, "bf16")
    except ConfigError as err:
        seen["ours"] = str(err)


def bf16(ranks, seen):
    prompts, responses = [[1, 2], [3]], [[4, 5, 6], [7, 8]]
    batch = SequenceBatch(prompts, responses, [torch.ones(3), torch.ones(2)])
    in_the_loss = []

    def objective(log_probs, mask, fields):
        in_the_loss.append(str(log_probs.dtype))
        return TokenLoss(-log_probs, {})

    values = {}
    for precision in ("32", "bf16"):
        torch.manual_seed(2)
        settings = dataclasses.replace(SETTINGS, optim=Optim(lr=1e-7))
        actor = RLKDActor(settings, VOCAB, ranks, pad_id=0, precision=precision)
        values[precision], _ = actor.get_inference_log_probs(prompts, responses, temperature=1.0)
    in_the_loss.clear()
    before = masters(actor)
    gap = max(float((a - b).abs().max()) for a, b in zip(values["32"], values["bf16"]))
    weights = [p.detach().clone() for p in actor.hidden_model.parameters()]
    for _ in range(2):
        actor.update(batch, objective)
    states = [per for one in each(actor.optimizer) for per in one.optimizer.state.values()]
    seen["dtypes"] = {
        "parameters": kinds(weights),
        "masters": kinds(before),
        "moments": kinds(value for per in states for value in per.values() if value.dim()),
        "gradients": kinds(p.main_grad for p in actor.hidden_model.parameters()),
        "log_probs": kinds(values["bf16"]),
        "in_the_loss": sorted(set(in_the_loss)),
    }
    seen["masters_moved"] = max(float((a - b).abs().max()) for a, b in zip(masters(actor), before))
    seen["bf16_log_prob_gap"] = gap


def masters(actor):
    groups = [group for one in each(actor.optimizer) for group in one.fp32_from_float16_groups]
    return [parameter.detach().clone() for group in groups for parameter in group]


def kinds(tensors):
    return sorted({str(tensor.dtype) for tensor in tensors})


class FusedNorm(torch.nn.Module):
    """The names of a linear layer of Transformer Engine that begins with a norm."""

    def __init__(self, linear, norm):
        super().__init__()
        self.layer_norm_weight, self.weight = norm.weight, linear.weight


def names(ranks, seen):
    model = build_model(SETTINGS, VOCAB, ranks)
    hidden = model.hidden_model
    state = model_state(hidden, training=True)
    seen["stored"] = sorted({entry.key for entry in state.values()})
    config = hidden.config
    object.__setattr__(hidden, "config", dataclasses.replace(config, fp8="hybrid"))
    seen["extra_state_in_a_delayed_training_state"] = any(
        name.endswith("_extra_state") for name in model_state(hidden, training=True)
    )
    object.__setattr__(hidden, "config", config)
    tensors = {name: tensor for name, tensor in hidden.state_dict().items() if not name.endswith("_extra_state")}
    fill(hidden, dict(tensors))
    tensors.pop("decoder.final_layernorm.weight")
    try:
        fill(hidden, tensors)
    except RuntimeError as err:
        seen["missing_weight_refused"] = "decoder.final_layernorm.weight" in str(err)

    def exported():
        return sorted((piece.name, float(piece.view.double().sum())) for piece in pieces(hidden))

    def sampled():
        parts = dict(WeightCollector(model, ranks, sharded=False)._named())
        return sorted((name, float(tensor.double().sum())) for name, tensor in parts.items())

    with torch.no_grad():
        for number, parameter in enumerate(hidden.parameters()):
            parameter.add_(0.01 * number)
    seen["pieces"], seen["parts"] = exported(), sampled()
    for layer in hidden.decoder.layers:
        layer.self_attention.linear_qkv = FusedNorm(layer.self_attention.linear_qkv, layer.input_layernorm)
        layer.mlp.linear_fc1 = FusedNorm(layer.mlp.linear_fc1, layer.pre_mlp_layernorm)
        layer.input_layernorm = layer.pre_mlp_layernorm = torch.nn.Identity()
    seen["te_named_pieces"], seen["te_named_parts"] = exported(), sampled()


def main(path):
    ranks, seen = init_ranks(1, 1), {}
    refused(ranks, seen)
    bf16(ranks, seen)
    names(ranks, seen)
    megatron_alone(seen)
    path.write_text(json.dumps(seen))
    close_ranks()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
