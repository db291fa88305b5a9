from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlkd_nemo.config.objectives import GRPO
from rlkd_nemo.errors import ShapeError
from rlkd_nemo.losses.grpo import grpo
from rlkd_nemo.losses.metrics import summary
from rlkd_nemo.losses.reduce import token_weights
from rlkd_nemo.losses.surrogate import importance_weight

VALID = torch.tensor([True, True])


@pytest.mark.parametrize(("how", "expected"), [("seq_mean", -0.089024746760), ("token_mean", -0.277313437916)])
def test_loss(two_responses, how, expected):
    loss = grpo(two_responses, GRPO())
    weights = token_weights(two_responses.mask, VALID, how)
    assert (weights * loss.per_token).sum().item() == pytest.approx(expected, abs=1e-9)


def test_gradient_and_metrics(two_responses, kept):
    loss = grpo(two_responses, GRPO())
    loss.per_token.sum().backward()
    # Unclipped: -r A. Token 5: A < 0 and r = .607 < .8, clipped.
    expected = [-1.221402758160, -0.818730753078, -1.051271096376, 0.904837418036, 0]
    assert kept(two_responses.log_probs.grad) == pytest.approx(expected, abs=1e-9)
    found = summary(loss.metrics)
    assert found["clip_fraction_low"] == pytest.approx(1 / 5)
    assert found["clip_fraction_high"] == 0
    assert found["clip_fraction_negative"] == pytest.approx(1 / 2)
    assert found["clip_fraction_positive"] == 0
    assert not [name for name in loss.metrics if "teacher" in name]


def test_importance_weights(two_responses):
    batch = replace(
        two_responses,
        old_log_probs=torch.tensor([[-0.5, -1.0, -2.0], [-1.0, -1.0, 0.0]], dtype=torch.float64),
        sampler_log_probs=torch.tensor([[-0.6, -0.4, -4.0], [-1.0, -1.0, 0.0]], dtype=torch.float64),
    )
    # exp(.1), exp(-.6), exp(2) = 7.39 capped at 2; equal log-probs weigh 1.
    expected = torch.tensor([[1.105170918076, 0.548811636094, 2.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(importance_weight(batch, 2.0), expected, rtol=0, atol=1e-9)

    weighted, plain = grpo(batch, GRPO(tis_cap=2.0)), grpo(batch, GRPO())
    torch.testing.assert_close(weighted.per_token, plain.per_token * expected * batch.mask)
    found = summary(weighted.metrics)
    assert found["tis_capped_fraction"] == pytest.approx(1 / 5)
    assert found["tis_weight_mean"] == pytest.approx((1.105170918076 + 0.548811636094 + 4) / 5)
    assert not [name for name in plain.metrics if name.startswith("tis")]


def test_importance_weights_leave_the_reference_term_alone(two_responses):
    batch = replace(
        two_responses,
        sampler_log_probs=two_responses.old_log_probs - 5.0,
        ref_log_probs=two_responses.teacher_log_probs,
    )
    plain, both = grpo(batch, GRPO()), grpo(batch, GRPO(tis_cap=2.0, reference_kl=0.5))
    # Every weight is 2. k3 of token 1 with u = .3: .049858807576; halved by the coefficient.
    assert both.per_token[0, 0].item() == pytest.approx(2 * plain.per_token[0, 0].item() + 0.5 * 0.049858807576)
    assert summary(both.metrics)["kl_ref"] == pytest.approx(0.695418319735)
    assert both.per_token[1, 2] == 0


@pytest.mark.parametrize(
    ("settings", "field"), [(GRPO(tis_cap=2.0), "sampler_log_probs"), (GRPO(reference_kl=0.1), "ref_log_probs")]
)
def test_a_missing_field_is_named(two_responses, settings, field):
    with pytest.raises(ShapeError, match=field):
        grpo(two_responses, settings)
