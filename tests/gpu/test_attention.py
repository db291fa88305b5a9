"""Fused attention in bf16 on a GPU: packed rows and the chunks of context parallelism, without materialised scores."""

import math

import rlkd_nemo.engine.ranks  # noqa: F401  before megatron

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType

from rlkd_nemo.config.schema import Model
from rlkd_nemo.engine.model.attention import FusedAttention, packed_segments
from rlkd_nemo.engine.model.build import transformer_config

pytestmark = pytest.mark.gpu
HEADS, GROUPS, CHANNELS = 8, 2, 64


@pytest.fixture(scope="module")
def attention():
    model = Model(
        hidden_size=512, num_attention_heads=HEADS, num_query_groups=GROUPS, tensor_model_parallel_size=1
    )  # fmt: skip
    return FusedAttention(transformer_config(model, "bf16"), 1, AttnMaskType.causal, "self")


def draw(queries, keys):
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = [(queries, 1, HEADS), (keys, 1, GROUPS), (keys, 1, GROUPS)]
    return [
        torch.randn(*shape, CHANNELS, generator=generator, device="cuda", dtype=torch.bfloat16).requires_grad_()
        for shape in shapes
    ]


def plain(query, key, value):
    """fp32, every score in the open; the queries are the last tokens of the keys. [s, b, heads, d]."""
    query, key, value = query.float(), *(part.float().repeat_interleave(HEADS // GROUPS, 2) for part in (key, value))
    scores = torch.einsum("sbhd,tbhd->bhst", query, key) / math.sqrt(CHANNELS)
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device="cuda").triu(1 + key.shape[0] - query.shape[0])
    return torch.einsum("bhst,tbhd->sbhd", scores.masked_fill(later, float("-inf")).softmax(-1), value)


def assert_same(got, want, parts):
    torch.testing.assert_close(got.float(), want, atol=2e-2, rtol=2e-2)
    pull = torch.randn_like(want)
    grads = torch.autograd.grad(got.float(), parts, pull), torch.autograd.grad(want, parts, pull)
    for a, b in zip(*grads):
        torch.testing.assert_close(a.float(), b.float(), atol=5e-2, rtol=5e-2)


def test_packed_rows(attention):
    lengths = [300, 1, 211]
    parts = draw(sum(lengths), sum(lengths))
    got = attention(*(part.squeeze(1) for part in parts), None, packed_seq_params=packed_segments(lengths, "cuda"))
    want = torch.cat([plain(*row) for row in zip(*(part.split(lengths) for part in parts))])
    assert_same(got, want.flatten(2).squeeze(1), parts)


def test_a_chunk_attends_to_all_before_it(attention):
    parts = draw(128, 512)
    assert_same(attention._causal(*parts), plain(*parts), parts)


@pytest.mark.parametrize(("queries", "packed"), [(8192, True), (2048, False)], ids=["packed", "chunk"])
def test_scores_are_never_whole(attention, queries, packed):
    parts = draw(queries, 8192)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    if packed:
        description = packed_segments([4096, 4096], "cuda")
        out = attention(*(part.squeeze(1) for part in parts), None, packed_seq_params=description)
    else:
        out = attention._causal(*parts)
    out.float().sum().backward()
    extra = torch.cuda.max_memory_allocated() - before
    scores = queries * (4096 if packed else 8192) * HEADS * 2  # bytes, bf16
    assert extra < scores / 2
