"""Core attention without Transformer Engine: PyTorch's fused scaled-dot-product kernels, no materialised scores."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig


class FusedAttention(MegatronModule):
    """Causal attention with grouped queries; takes the place of Megatron's `DotProductAttention` in a layer spec.

    Not handled: attention bias, packed sequences (`thd`), context parallelism; each is refused by name.
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
        packed_seq_params: Any = None,
    ) -> torch.Tensor:
        """query [s, b, heads, d], key and value [s, b, groups, d] -> [s, b, heads * d]."""
        if attention_bias is not None or packed_seq_params is not None or attention_mask is not None:
            raise ValueError("FusedAttention is causal over right-padded rows: no bias, packing or explicit mask")
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
        return out.permute(2, 0, 1, 3).reshape(out.shape[2], out.shape[0], -1)
