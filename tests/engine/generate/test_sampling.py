"""Named random numbers and drawing with them."""

import math

import numpy as np
import pytest
import torch

from rlkd_nemo.engine.generate import sampling
from rlkd_nemo.engine.generate.sampling import draw, uniforms


def test_numbers_depend_on_the_whole_name_and_on_nothing_else():
    first = uniforms(("train", 7, 3, "problem", 0), 5)
    np.random.seed(99)
    assert np.array_equal(first, uniforms(("train", 7, 3, "problem", 0), 5))
    assert np.array_equal(first, uniforms(("train", 7, 3, "problem", 0), 9)[:5])
    others = [("train", 7, 3, "problem", 1), ("train", 7, 30, "problem", 0), ("train", 7, 3, "proble", "m0")]
    assert all(not np.isclose(first, uniforms(name, 5)).any() for name in others)
    # Parts that join to the same text are still other names.
    assert not np.isclose(uniforms(("ab", "c"), 5), uniforms(("a", "bc"), 5)).any()
    assert first.dtype == np.float64 and ((first >= 0) & (first < 1)).all()


def test_a_number_falls_into_its_token_s_interval():
    # Probabilities 1/2, 1/4, 0, 1/4: intervals [0, .5), [.5, .75), none, [.75, 1).
    logits = torch.tensor([0.5, 0.25, 0.0, 0.25]).log().repeat(6, 1)
    numbers = torch.tensor([0.0, 0.49, 0.51, 0.74, 0.76, 1 - 2**-53], dtype=torch.float64)
    tokens, log_probs = draw(logits, numbers, 1.0)
    assert tokens.tolist() == [0, 0, 1, 1, 3, 3]
    want = [math.log(0.5)] * 2 + [math.log(0.25)] * 4
    assert log_probs.tolist() == pytest.approx(want, abs=1e-6)


def test_no_column_without_probability_is_drawn_at_the_edge():
    logits = torch.tensor([[0.0, 0.0, -math.inf]])
    assert draw(logits, torch.tensor([1 - 2**-53], dtype=torch.float64), 1.0)[0].item() == 1
    logits = torch.tensor([[-math.inf, 0.0, 0.0]])
    assert draw(logits, torch.tensor([0.0], dtype=torch.float64), 1.0)[0].item() == 1
    # The largest number there is, over many totals that are not exactly 1.
    logits = torch.cat([torch.randn(2000, 4), torch.full((2000, 1), -math.inf)], dim=1)
    assert draw(logits, torch.full((2000,), 1 - 2**-53, dtype=torch.float64), 1.0)[0].max() == 3


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_frequencies_fit_the_tempered_distribution(temperature):
    logits = torch.tensor([1.0, 0.0, -1.0, 0.3, -2.0])
    number = 20000
    draws = torch.from_numpy(uniforms(("chi", temperature), number))
    tokens, log_probs = draw(logits.repeat(number, 1), draws, temperature)
    probs = torch.softmax(logits.double() / temperature, 0)
    observed = torch.bincount(tokens, minlength=5).double()
    chi2 = ((observed - number * probs) ** 2 / (number * probs)).sum()
    # Four degrees of freedom: 18.47 is exceeded once in a thousand; the numbers are fixed.
    assert chi2 < 18.47
    assert torch.allclose(log_probs.double(), probs.log()[tokens], atol=1e-6)


def test_greedy_takes_the_likeliest_and_reports_it_at_temperature_one():
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(4.0), 0.0]])
    tokens, log_probs = draw(logits, torch.zeros(2, dtype=torch.float64), 0.0)
    assert tokens.tolist() == [1, 0]
    assert log_probs.tolist() == pytest.approx([math.log(0.75), math.log(0.8)], abs=1e-6)


def test_rare_tokens_of_a_large_vocabulary_keep_their_share(monkeypatch):
    # One token of probability 0.999, then 100 k of 1e-8 each, a sixth of float32's spacing below 1: summed in float32
    # only every sixth could be drawn.
    tail = 100_000
    logits = torch.cat([torch.tensor([0.999]), torch.full((tail,), 1e-8)]).log()[None]
    number = 0.9995 + 1e-8 * torch.arange(200, dtype=torch.float64)
    tokens = draw(logits.repeat(200, 1), number, 1.0)[0]
    assert abs(tokens[0].item() - 0.5 * tail) < 100  # the softmax itself is float32
    assert tokens.diff().min() >= 0 and len(tokens.unique()) >= 198
    # In pieces of one row the tokens are the same.
    monkeypatch.setattr(sampling, "_CHUNK_ELEMENTS", 1)
    assert torch.equal(draw(logits.repeat(200, 1), number, 1.0)[0], tokens)
