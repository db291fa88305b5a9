"""Rotary frequencies, by hand."""

import math

import torch

from rlkd_nemo.config.schema import Model, RopeScaling
from rlkd_nemo.engine.model.rope import rotary_frequencies


def model(**scaling):
    # A head of 8: frequencies 1, 0.1, 0.01, 0.001.
    return Model(hidden_size=32, num_attention_heads=4, rotary_base=1e4, rope_scaling=RopeScaling(**scaling))


def test_plain():
    frequencies, factor = rotary_frequencies(model())
    torch.testing.assert_close(frequencies, torch.tensor([1.0, 0.1, 0.01, 0.001]))
    assert factor == 1.0


def test_llama3_stretches_long_waves_and_leaves_short_ones():
    # Over 200 pi tokens the pairs turn 100, 10, 1 and 0.1 times. From 4 turns on nothing changes, below 1 all is
    # divided by 8; 1 turn is the lower bound itself.
    context = round(200 * math.pi)
    got, factor = rotary_frequencies(model(type="llama3", factor=8.0, original_max_position_embeddings=context))
    torch.testing.assert_close(got, torch.tensor([1.0, 0.1, 0.01 / 8, 0.001 / 8]), rtol=1e-3, atol=0)
    assert factor == 1.0
    # 2.5 turns are half way between 1 and 4: half of 0.01 and half of 0.01 / 8.
    context = round(500 * math.pi)
    got, _ = rotary_frequencies(model(type="llama3", factor=8.0, original_max_position_embeddings=context))
    torch.testing.assert_close(got[2], torch.tensor(0.01 * (0.5 + 0.5 / 8)), rtol=1e-3, atol=0)


def test_yarn_blends_by_pair_and_scales_cosines():
    # Turns over 1000 tokens: 159, 15.9, 1.59, 0.159. 32 turns lie at pair log10(159/32) = 0.70, rounded down to 0;
    # 1 turn at log10(159) = 2.20, rounded up to 3. So pair i keeps 1 - i/3.
    got, factor = rotary_frequencies(model(type="yarn", factor=4.0, original_max_position_embeddings=1000))
    kept = torch.tensor([1.0, 2 / 3, 1 / 3, 0.0])
    plain = torch.tensor([1.0, 0.1, 0.01, 0.001])
    torch.testing.assert_close(got, plain * kept + plain / 4 * (1 - kept))
    assert math.isclose(factor, 0.1 * math.log(4) + 1)
    _, factor = rotary_frequencies(model(type="yarn", factor=4.0, attention_factor=1.5))
    assert factor == 1.5
    # Unrounded, the ramp runs from 0.70 to 2.20.
    got, _ = rotary_frequencies(model(type="yarn", factor=4.0, original_max_position_embeddings=1000, truncate=False))
    low, high = math.log10(1000 / 64 / math.pi), math.log10(500 / math.pi)
    kept = 1 - (1 - low) / (high - low)
    torch.testing.assert_close(got[1], torch.tensor(0.1 * (kept + (1 - kept) / 4)))
