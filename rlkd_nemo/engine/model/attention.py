"""Core attention without Transformer Engine: PyTorch's fused scaled-dot-product kernels, no materialised scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as functional
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn.attention.bias import causal_lower_right


@dataclass
class PackedSegments(PackedSeqParams):
    """Megatron's description of a packed row, with the lengths on the host: reading them must not wait for a GPU.

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
    Context parallelism: a rank holds chunks r and 2 x size - 1 - r of each row (`training.batch.context_share`). Keys and
    values of all ranks are gathered, and each chunk of queries attends up to its own end; backward scatters and sums.
    Not handled: attention bias, explicit masks; each is refused by name.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        **ignored_by_design: Any,  # cp_comm_type: there is one way here
    ) -> None:
        super().__init__(config=config)
        self.cp_size = config.context_parallel_size
        self.cp_group = pg_collection.cp if pg_collection is not None and self.cp_size > 1 else None
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
            return self._rows([query.shape[0]], query, key, value).flatten(2)
        segments = [length // self.cp_size for length in packed_seq_params.segments]
        return self._rows(segments, *(part.unsqueeze(1) for part in (query, key, value))).flatten(2).squeeze(1)

    def _rows(self, segments: list[int], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """[s, b, heads, d], where `segments` of it (this rank's tokens) are sequences of their own."""
        if self.cp_size == 1:
            parts = zip(*(part.split(segments) for part in (query, key, value)))
            return _joined([self._causal(*part) for part in parts])
        # One call for both; [ranks, s, 2, b, groups, d].
        both = gather_from_sequence_parallel_region(torch.stack([key, value], dim=1), group=self.cp_group)
        both = both.unflatten(0, (self.cp_size, -1))
        outs = []
        for rows, whole in zip(query.split(segments), both.split(segments, dim=1)):
            whole = _in_order(whole)
            chunk = rows.shape[0] // 2
            rank = dist.get_rank(self.cp_group)
            for part, number in zip(rows.split(chunk), (rank, 2 * self.cp_size - 1 - rank)):
                seen = whole[: (number + 1) * chunk]
                outs.append(self._causal(part, seen[:, 0], seen[:, 1]))
        return torch.cat(outs)

    def _causal(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """[s, b, heads, d] of the last s tokens seen, [seen, b, groups, d] -> [s, b, heads, d]."""
        whole = query.shape[0] == key.shape[0]
        query, key, value = (part.permute(1, 2, 0, 3) for part in (query, key, value))
        out = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            # The bias keeps the fused kernels of a GPU; a CPU materialises it, [s, seen] for all heads together.
            attn_mask=None if whole else causal_lower_right(query.shape[2], key.shape[2]),
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=whole,
            scale=self.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return out.permute(2, 0, 1, 3)


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _in_order(whole: torch.Tensor) -> torch.Tensor:
    """[ranks, s, ...], rank r with chunks r and 2 x ranks - 1 - r of a sequence -> [ranks x s, ...] in order."""
    early, late = whole.unflatten(1, (2, -1)).unbind(1)
    return torch.cat([early.flatten(0, 1), late.flip(0).flatten(0, 1)])
