from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlkd_nemo.config.objectives import OPD
from rlkd_nemo.errors import ShapeError
from rlkd_nemo.losses.batch import TokenBatch
from rlkd_nemo.losses.metrics import summary
from rlkd_nemo.losses.opd import opd


def test_advantage_is_the_teacher_s_log_ratio(two_responses, kept):
    loss = opd(two_responses, OPD())
    # l_T - l_old = .5 -2 -.05 | -1.7 .9 with rho 1.221 .819 1.051 | .905 .607: none is clipped.
    expected = [
        -1.221402758160 * 0.5,
        0.818730753078 * 2,
        1.051271096376 * 0.05,
        0.904837418036 * 1.7,
        -0.606530659713 * 0.9,
    ]
    assert kept(loss.per_token) == pytest.approx(expected, abs=1e-9)
    loss.per_token.sum().backward()
    assert kept(two_responses.log_probs.grad) == pytest.approx(expected, abs=1e-9)  # d(r A) = r A


def test_rewards_do_not_enter(two_responses):
    other = replace(two_responses, advantages=torch.full((2, 1), 17.0, dtype=torch.float64))
    assert torch.equal(opd(other, OPD()).per_token, opd(two_responses, OPD()).per_token)


def test_on_policy_its_mean_gradient_is_that_of_the_reverse_kl():
    # All three tokens of a distribution, weighted by their probability; expected: gradient of KL(p||q) in p's logits.
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    logits = p.log().requires_grad_()
    student = logits.log_softmax(0)[None]
    mask = torch.ones(1, 3, dtype=torch.bool)
    batch = TokenBatch(student, student.detach(), torch.zeros(1, 1, dtype=torch.float64), mask, q.log()[None])
    (p * opd(batch, OPD()).per_token[0]).sum().backward()
    assert logits.grad.tolist() == pytest.approx([0.346243037344, -0.220389084285, -0.125853953059], abs=1e-9)


def test_a_token_without_teacher_teaches_nothing(two_responses):
    teacher_mask = torch.tensor([[True, False, True], [True, True, False]])
    loss = opd(replace(two_responses, teacher_mask=teacher_mask), OPD())
    assert loss.per_token[0, 1] == 0
    assert summary(loss.metrics)["teacher_influence_share"] == pytest.approx(4 / 5)


def test_it_needs_a_teacher(two_responses):
    with pytest.raises(ShapeError, match="opd needs batch.teacher_log_probs"):
        opd(replace(two_responses, teacher_log_probs=None), OPD())
