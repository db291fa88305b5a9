"""Frequencies of the rotary positions: one place for the Megatron model and the embedded sampler."""

from __future__ import annotations

import math

import torch

from rlkd_nemo.config.schema import Model, RopeScaling


def rotary_frequencies(model: Model) -> tuple[torch.Tensor, float]:
    """Radians a token for each pair of a head's channels, float32 [head_dim / 2], and the factor on cosine and sine.

    Source: RoPE arXiv:2104.09864; yarn: arXiv:2309.00071, section 3.2, with its attention factor 0.1 ln(s) + 1; llama3:
    the scaling released with Llama 3.1 (a blend by wavelength).
    """
    head_dim = model.kv_channels or model.hidden_size // model.num_attention_heads
    steps = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    plain = 1.0 / (model.rotary_base**steps)
    scaling = model.rope_scaling
    if scaling.type == "llama3":
        return _llama3(plain, scaling), 1.0
    if scaling.type == "yarn":
        return _yarn(plain, scaling, model.rotary_base, head_dim), attention_factor(scaling)
    return plain, 1.0


def attention_factor(scaling: RopeScaling) -> float:
    """What yarn multiplies cosines and sines by."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0


def _llama3(plain: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    turns = scaling.original_max_position_embeddings * plain / (2 * math.pi)  # over the old context
    # 0: stretched whole, 1: left alone.
    kept = ((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0.0, 1.0)
    return plain / scaling.factor * (1.0 - kept) + plain * kept


def _yarn(plain: torch.Tensor, scaling: RopeScaling, base: float, head_dim: int) -> torch.Tensor:
    def channel(turns: float) -> float:
        """Which pair of channels turns so often over the old context."""
        wavelength = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(base))

    low, high = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # a step instead of a ramp
    stretched = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0.0, 1.0)
    return plain / scaling.factor * stretched + plain * (1.0 - stretched)
