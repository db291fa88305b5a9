from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlkd_nemo.config.objectives import GRPO, KDRL
from rlkd_nemo.errors import ConfigError, ShapeError
from rlkd_nemo.losses.grpo import grpo
from rlkd_nemo.losses.kdrl import _divergence, beta_at, kdrl, teacher_rows
from rlkd_nemo.losses.metrics import summary
from rlkd_nemo.losses.reduce import token_weights

VALID = torch.tensor([True, True])


@pytest.mark.parametrize(
    ("beta", "estimator", "seq", "tok"),
    [
        (0.002, "k2", -0.087338080093, -0.275741437916),
        (0.002, "k3", -0.087456200146, -0.275922601276),
        (0.2, "k2", 0.079641919907, -0.120113437916),
        (0.2, "k3", 0.067829914610, -0.138229773969),
    ],
)
def test_loss(two_responses, beta, estimator, seq, tok):
    loss = kdrl(two_responses, KDRL(beta=beta, estimator=estimator))
    for how, expected in (("seq_mean", seq), ("token_mean", tok)):
        weights = token_weights(two_responses.mask, VALID, how)
        assert (weights * loss.per_token).sum().item() == pytest.approx(expected, abs=1e-9)


def test_k2_adds_the_log_ratio_to_the_advantage(two_responses, kept):
    kdrl(two_responses, KDRL(beta=0.2)).per_token.sum().backward()
    # GRPO's gradient plus .2 (l_S - l_T) = .2 (-.3 1.8 .1 | 1.6 -1.4); token 5 is clipped, but not untaught.
    expected = [-1.221402758160 - 0.06, -0.818730753078 + 0.36, -1.051271096376 + 0.02, 0.904837418036 + 0.32, -0.28]
    assert kept(two_responses.log_probs.grad) == pytest.approx(expected, abs=1e-9)


def test_a_masked_response_keeps_the_denominator(two_responses):
    groups, correct = torch.tensor([0, 0]), torch.tensor([True, False])
    rows = teacher_rows("response", correct, groups)
    batch = replace(two_responses, teacher_mask=rows[:, None] & two_responses.mask)
    taught, plain = kdrl(batch, KDRL(beta=1.0)), grpo(batch, GRPO())
    weights = token_weights(batch.mask, VALID, "token_mean")
    # k2 of the second response: 1.28 + .98 = 2.26, over all five tokens .452.
    assert (weights * (taught.per_token - plain.per_token)).sum().item() == pytest.approx(0.452, abs=1e-9)
    found = summary(taught.metrics)
    assert found["kd_loss"] == pytest.approx(0.452)
    assert found["teacher_gap_mean"] == pytest.approx(0.1)  # (1.6 - 1.4) / 2, over the teacher's tokens only
    assert torch.equal(taught.per_token[0], plain.per_token[0])


def test_teacher_rows():
    correct, groups = torch.tensor([True, False, False, False]), torch.tensor([7, 3, 7, 3])
    assert teacher_rows("none", correct, groups).tolist() == [True] * 4
    assert teacher_rows("response", correct, groups).tolist() == [False, True, True, True]
    assert teacher_rows("group", correct, groups).tolist() == [False, True, False, True]
    with pytest.raises(ConfigError, match="objective.kd_mask='all'.*none, response, group"):
        teacher_rows("all", correct, groups)
    with pytest.raises(ShapeError):
        teacher_rows("group", correct, groups[:2])


def test_beta_schedule():
    # 5e-3 falls by 5e-5 a step and reaches 1e-3 after 80.
    settings = KDRL(beta=5e-3, beta_decay=5e-5, beta_min=1e-3)
    found = [beta_at(settings, step) for step in (0, 40, 80, 200)]
    assert found == pytest.approx([5e-3, 3e-3, 1e-3, 1e-3], abs=1e-15)


def test_the_step_drives_the_loss(two_responses):
    settings = KDRL(beta=0.4, beta_decay=0.1)
    late = kdrl(two_responses, settings, step=2)
    torch.testing.assert_close(late.per_token, kdrl(two_responses, KDRL(beta=0.2)).per_token)
    assert summary(late.metrics)["beta"] == pytest.approx(0.2)


def test_beta_zero_is_grpo_and_needs_no_teacher(two_responses):
    alone = replace(two_responses, teacher_log_probs=None)
    assert torch.equal(kdrl(alone, KDRL(beta=0.0)).per_token, grpo(alone, GRPO()).per_token)
    with pytest.raises(ShapeError, match="kdrl needs batch.teacher_log_probs"):
        kdrl(alone, KDRL())


def test_influence_share_counts_tokens_moved_by_more_than_a_percent(two_responses):
    # Pull .02 (l_S - l_T) = -.006 .036 .002 .032 -.028 against slopes 1.221 .819 1.051 .905 0: tokens 2, 4 and 5.
    assert summary(kdrl(two_responses, KDRL(beta=0.02)).metrics)["teacher_influence_share"] == pytest.approx(3 / 5)


def test_influence_share_weighs_the_policy_term_as_the_loss_does(two_responses):
    # Importance weights of 10 raise what a percent is to .122 .082 .105 .090: of the pulls above only token 5's counts.
    batch = replace(two_responses, sampler_log_probs=two_responses.old_log_probs - 5.0)
    found = summary(kdrl(batch, KDRL(beta=0.02, tis_cap=10.0)).metrics)
    assert found["teacher_influence_share"] == pytest.approx(1 / 5)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_the_slope_of_the_divergence_is_its_gradient(two_responses, estimator):
    value, slope = _divergence(estimator, two_responses.log_probs, two_responses.teacher_log_probs)
    gradient = torch.autograd.grad(value.sum(), two_responses.log_probs)[0]
    torch.testing.assert_close(slope, gradient)


def test_an_unknown_estimator_lists_the_choices(two_responses):
    with pytest.raises(ConfigError, match="objective.estimator='k1'.*k2, k3"):
        kdrl(two_responses, KDRL(estimator="k1"))
