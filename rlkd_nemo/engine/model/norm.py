"""RMSNorm for Megatron's own layers."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig


class RMSNorm:
    """`torch.nn.RMSNorm` under the signature of a layer spec.

    Megatron's own wrapper refuses sequence parallelism, though all that is needed is the mark on the weight.
    A class with `__new__`, since specs return plain functions unbuilt.
    """

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **ignored: Any) -> Any:
        norm = torch.nn.RMSNorm(hidden_size, eps=eps)
        norm.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        return norm
