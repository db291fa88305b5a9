"""Core attention without Transformer Engine: PyTorch's fused scaled-dot-product kernels, no materialised scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as functional
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig


@dataclass
class PackedSegments(PackedSeqParams):
    """Megatron's description of a packed row, with the lengths on the host too: reading them must not wait for a GPU.

    Attributes: segments: tokens of each sequence in the row, its padding included.
    """

    segments: Sequence[int] = ()


def packed_segments(segments: Sequence[int], device: torch.device) -> PackedSegments:
    """The description of a row of sequences of the given lengths. Padding at a sequence's end counts as part of it:
    attention is causal, so nothing that matters sees it."""
    bounds = torch.tensor([0, *accumulate(segments)], dtype=torch.int32, device=device)
    longest = max(segments)
    return PackedSegments(
        qkv_format="thd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        segments=tuple(segments),
    )


class FusedAttention(MegatronModule):
    """Causal attention with grouped queries; takes the place of Megatron's `DotProductAttention` in a layer spec.

    Packed rows (`thd`): each sequence attends to itself only, one kernel call a sequence.
    Not handled: attention bias, explicit masks, context parallelism; each is refused by name.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        **ignored_by_design: Any,  # cp_comm_type, pg_collection: heads are already local, nothing is communicated
    ) -> None:
        super().__init__(config=config)
        if config.context_parallel_size != 1:
            raise ValueError("FusedAttention has no context parallelism; it needs Transformer Engine")
        self.scale = softmax_scale
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSegments | None = None,
    ) -> torch.Tensor:
        """query [s, b, heads, d], key and value [s, b, groups, d] -> [s, b, heads * d].

        With `packed_seq_params`, query [tokens, heads, d], key and value [tokens, groups, d] -> [tokens, heads * d].
        """
        if attention_bias is not None or attention_mask is not None:
            raise ValueError("FusedAttention is causal over right-padded or packed rows: no bias, no explicit mask")
        if packed_seq_params is None:
            return self._causal(query, key, value).flatten(2)
        segments = list(packed_seq_params.segments)
        parts = zip(*(part.unsqueeze(1).split(segments) for part in (query, key, value)))
        return torch.cat([self._causal(*part) for part in parts]).flatten(1)

    def _causal(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """[s, b, heads, d] of whole sequences -> [s, b, heads, d]."""
        query, key, value = (part.permute(1, 2, 0, 3) for part in (query, key, value))
        out = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=True,
            scale=self.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return out.permute(2, 0, 1, 3)
