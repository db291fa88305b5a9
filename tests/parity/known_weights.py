"""The same weights in every layout: each tensor is drawn whole from its global name, then cut as Megatron cuts it."""

import zlib

import torch
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset


def full_shape(parameter, tp_size):
    shape = list(parameter.shape)
    if getattr(parameter, "tensor_model_parallel", False):
        shape[parameter.partition_dim] *= tp_size
    return shape


def global_name(name, config):
    if name.startswith("decoder.layers."):
        _, _, number, rest = name.split(".", 3)
        return f"decoder.layers.{int(number) + get_transformer_layer_offset(config)}.{rest}"
    return name


def cut(full, name, parameter, ranks):
    """This rank's part of a whole tensor."""
    if not getattr(parameter, "tensor_model_parallel", False):
        return full
    if name.endswith("linear_fc1.weight"):  # gate and up are cut apart, then stacked
        return torch.cat(
            [half.chunk(ranks.tp_size, parameter.partition_dim)[ranks.tp_rank] for half in full.chunk(2, 0)]
        )
    return full.chunk(ranks.tp_size, parameter.partition_dim)[ranks.tp_rank]


@torch.no_grad()
def fill(model, ranks):
    """Give `model` (of build_model) its known weights; norms stay near 1."""
    for name, parameter in model.hidden_model.named_in_whole():
        if name == "output_layer.weight" and model.settings.share_embeddings_and_output_weights:
            name = "embedding.word_embeddings.weight"  # the last stage's own copy
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        full = torch.randn(full_shape(parameter, ranks.tp_size), generator=generator) * 0.08
        if "norm" in name:
            full = 1.0 + full
        parameter.copy_(cut(full, name, parameter, ranks))
