"""Which part of which parameter each Hugging Face tensor is; the one map that import and export go by.

A fused QKV matrix holds, group by group, the group's queries, its key and its value; `linear_fc1` holds this rank's gate
above its up projection. Every other parameter is one tensor, cut along rows or columns over tensor-parallel ranks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from rlkd_nemo.config.schema import Model
from rlkd_nemo.errors import ConfigError

EMBEDDING, OUTPUT, FINAL_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
# Tables that old exports kept beside the weights; they follow from config.json.
DERIVED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_SAME = {
    "input_layernorm.weight": "input_layernorm.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    # The same two in Transformer Engine's layers, where each is part of the matrix that follows.
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    "self_attention.q_layernorm.weight": "self_attn.q_norm.weight",
    "self_attention.k_layernorm.weight": "self_attn.k_norm.weight",
}
_CUT_INPUT = {
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}


@dataclass(frozen=True)
class Piece:
    """One Hugging Face tensor, or this rank's cut of it, inside a parameter.

    Attributes:
        name: the tensor's.
        dim: along which the ranks cut it, in order of rank; None: every rank holds all of it.
        view: into the parameter; its elements in order are the cut's.
        shape: of the cut; rows that only pad the vocabulary are counted.
        second: the output matrix of a tied model on another stage than its embedding.
    """

    name: str
    dim: int | None
    view: torch.Tensor
    shape: tuple[int, ...]
    second: bool = False


def whole_shapes(model: Model, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model with its shape, in the order of the layers."""
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    head = model.kv_channels or hidden // model.num_attention_heads
    queries, keys = model.num_attention_heads * head, model.num_query_groups * head
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (vocab_size, hidden)}
    for number in range(model.num_layers):
        layer = {"input_layernorm.weight": (hidden,)}
        for part, rows in (("q", queries), ("k", keys), ("v", keys)):
            layer[f"self_attn.{part}_proj.weight"] = (rows, hidden)
            if model.add_qkv_bias:
                layer[f"self_attn.{part}_proj.bias"] = (rows,)
        if model.qk_layernorm:
            layer |= {"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)}
        layer |= {
            "self_attn.o_proj.weight": (hidden, queries),
            "post_attention_layernorm.weight": (hidden,),
            "mlp.gate_proj.weight": (ffn, hidden),
            "mlp.up_proj.weight": (ffn, hidden),
            "mlp.down_proj.weight": (hidden, ffn),
        }
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    shapes[FINAL_NORM] = (hidden,)
    if not model.share_embeddings_and_output_weights:
        shapes[OUTPUT] = (vocab_size, hidden)
    return shapes


def pieces(hidden_model: torch.nn.Module) -> Iterator[Piece]:
    """The tensors in this rank's parameters; together they cover each parameter exactly once.

    Raises: ConfigError on a parameter that no tensor belongs to.
    """
    hidden_model.settle()
    for name, parameter in hidden_model.named_in_whole():
        data = parameter.detach()
        match = _LAYER.fullmatch(name)
        if match:
            yield from _layer_pieces(f"model.layers.{match[1]}", match[2], data, hidden_model.config)
        elif name == "embedding.word_embeddings.weight":
            yield Piece(EMBEDDING, 0, data, tuple(data.shape))
        elif name == "output_layer.weight":
            tied = hidden_model.share_embeddings_and_output_weights
            yield Piece(EMBEDDING if tied else OUTPUT, 0, data, tuple(data.shape), second=tied)
        elif name == "decoder.final_layernorm.weight":
            yield Piece(FINAL_NORM, None, data, tuple(data.shape))
        else:
            raise _unknown(name)


def _layer_pieces(prefix: str, name: str, data: torch.Tensor, config) -> Iterator[Piece]:
    if name in _SAME:
        yield Piece(f"{prefix}.{_SAME[name]}", None, data, tuple(data.shape))
    elif name in _CUT_INPUT:
        yield Piece(f"{prefix}.{_CUT_INPUT[name]}", 1, data, tuple(data.shape))
    elif name == "mlp.linear_fc1.weight":
        for part, half in zip(("gate", "up"), data.chunk(2)):
            yield Piece(f"{prefix}.mlp.{part}_proj.weight", 0, half, tuple(half.shape))
    elif name in ("self_attention.linear_qkv.weight", "self_attention.linear_qkv.bias"):
        heads = config.num_attention_heads // config.num_query_groups
        grouped = data.view(-1, heads + 2, config.kv_channels, *data.shape[1:])
        for part, view in (("q", grouped[:, :heads]), ("k", grouped[:, heads]), ("v", grouped[:, heads + 1])):
            rows = view.numel() // math.prod(data.shape[1:])
            kind = name.rpartition(".")[2]
            yield Piece(f"{prefix}.self_attn.{part}_proj.{kind}", 0, view, (rows, *data.shape[1:]))
    else:
        raise _unknown(name)


def _unknown(name: str) -> ConfigError:
    return ConfigError(
        f"parameter {name} has no Hugging Face tensor; engine/model/families covers decoders of RMSNorm, "
        "SwiGLU and RoPE only"
    )
