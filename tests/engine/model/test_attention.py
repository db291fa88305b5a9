"""Fused attention against the plain soft-max, and packed rows against rows alone; ranks are in tests/parity."""

import math

import rlkd_nemo.engine.ranks  # noqa: F401  before megatron

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType

from rlkd_nemo.config.schema import Model
from rlkd_nemo.engine.model.attention import FusedAttention, packed_segments
from rlkd_nemo.engine.model.build import transformer_config


@pytest.fixture(scope="module")
def attention():
    config = transformer_config(Model(num_attention_heads=4, num_query_groups=2, tensor_model_parallel_size=1))
    return FusedAttention(config, 1, AttnMaskType.causal, "self")


def draw(tokens, batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, batch, heads, 8, generator=generator) for heads in (4, 2, 2)]


def plain(query, key, value):
    """Every score in the open: [s, b, heads, d] -> [s, b, heads * d]."""
    key, value = (part.repeat_interleave(2, dim=2) for part in (key, value))
    scores = torch.einsum("sbhd,tbhd->bhst", query, key) / math.sqrt(8)
    above = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return torch.einsum("bhst,tbhd->sbhd", scores.masked_fill(above, float("-inf")).softmax(-1), value).flatten(2)


def test_causal_with_grouped_queries(attention):
    parts = draw(7, 3)
    torch.testing.assert_close(attention(*parts, None), plain(*parts))


def test_packed_rows_do_not_see_one_another(attention):
    lengths = [5, 1, 3]
    parts = [part.requires_grad_() for part in draw(sum(lengths), 1)]
    packed = attention(*(part.squeeze(1) for part in parts), None, packed_seq_params=packed_segments(lengths, "cpu"))
    alone = torch.cat([plain(*row) for row in zip(*(part.split(lengths) for part in parts))]).squeeze(1)
    torch.testing.assert_close(packed, alone)
    pull = torch.randn(packed.shape, generator=torch.Generator().manual_seed(1))
    for a, b in zip(torch.autograd.grad(packed, parts, pull), torch.autograd.grad(alone, parts, pull)):
        torch.testing.assert_close(a, b)


def test_the_description_is_megatrons():
    got = packed_segments([5, 1, 3], "cpu")
    assert got.qkv_format == "thd" and got.max_seqlen_q == got.max_seqlen_kv == 5
    assert got.cu_seqlens_q.tolist() == got.cu_seqlens_kv.tolist() == [0, 5, 6, 9]
    assert got.cu_seqlens_q.dtype == torch.int32


def test_masks_and_biases_are_refused(attention):
    parts = draw(2, 1)
    with pytest.raises(ValueError, match="no explicit mask"):
        attention(*parts, torch.zeros(1, 1, 2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="no bias"):
        attention(*parts, None, attention_bias=torch.zeros(1))
