"""What a decoder needs of a model: plain tensors, laid out for multiplying few rows at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass
class LayerWeights:
    """One transformer layer; matrices are [in, out] and contiguous.

    Attributes:
        qkv: [hidden, groups * (heads / groups + 2) * head_dim]; per group its queries, its key, its value. Within
            queries and keys the two halves of a head are interleaved, so that a rotation is one complex product.
        qkv_bias: [groups * (heads / groups + 2) * head_dim], in the order of qkv's columns; None where there is none.
        q_norm / k_norm: [head_dim], interleaved alike; None where the model has none.
        fc1: [hidden, 2 * ffn], gate then up.
    """

    input_norm: torch.Tensor
    qkv: torch.Tensor
    proj: torch.Tensor
    pre_mlp_norm: torch.Tensor
    fc1: torch.Tensor
    fc2: torch.Tensor
    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None
    qkv_bias: torch.Tensor | None = None


@dataclass
class DecoderWeights:
    """A whole decoder, or one tensor-parallel rank's share of every layer.

    Attributes:
        embedding: [vocabulary, hidden]; this rank's rows, padding included, when sharded.
        output: [hidden, vocabulary]; this rank's columns, padding included, when sharded.
        num_heads / num_groups: of the tensors held here.
        rotary_frequencies / attention_factor: of engine/model/rope.py, radians a token, float32 [head_dim / 2].
        vocab_size: real token ids; columns from it on are padding.
        group: the tensor-parallel group over which the shards sum up; None when the weights are whole.
    """

    embedding: torch.Tensor
    layers: list[LayerWeights]
    final_norm: torch.Tensor
    output: torch.Tensor
    num_heads: int
    num_groups: int
    head_dim: int
    norm_eps: float
    rotary_frequencies: torch.Tensor
    vocab_size: int
    group: dist.ProcessGroup | None = None
    attention_factor: float = 1.0

    @property
    def dtype(self) -> torch.dtype:
        """Arithmetic is done in the weights' own precision; logits are float32."""
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device


def interleaved(head_dim: int) -> torch.Tensor:
    """Order that turns half-split rotary pairs (i, i + d/2) into neighbours: int64 [head_dim], 0, d/2, 1, d/2+1, ..."""
    return torch.arange(head_dim).view(2, -1).T.reshape(-1)


def interleaved_qkv(num_groups: int, heads_per_group: int, head_dim: int) -> torch.Tensor:
    """The same for the rows of Megatron's fused QKV matrix: queries and key of each group permuted, value as it is."""
    order = interleaved(head_dim)
    plain = torch.arange(head_dim)
    per_head = torch.stack([order] * (heads_per_group + 1) + [plain])
    first = torch.arange(num_groups * (heads_per_group + 2)).view(num_groups, -1, 1) * head_dim
    return (first + per_head).reshape(-1)
