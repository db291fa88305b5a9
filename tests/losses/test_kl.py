from __future__ import annotations

import pytest
import torch

from rlkd_nemo.losses.kl import k1, k2, k3

P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
Q = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
REVERSE, FORWARD = 0.223804657186, 0.193794197941  # KL(p||q), KL(q||p)
REVERSE_GRADIENT = [0.346243037344, -0.220389084285, -0.125853953059]  # of KL(p||q) in p's logits


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (k1, [-0.3, 1.8, 0.1, 1.6, -1.4]),
        (k2, [0.045, 1.62, 0.005, 1.28, 0.98]),
        (k3, [0.049858807576, 0.965298888222, 0.004837418036, 0.801896517995, 1.655199966845]),
    ],
)
def test_values_per_token(two_responses, kept, estimator, expected):
    values = estimator(two_responses.log_probs, two_responses.teacher_log_probs)
    assert kept(values) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("estimator", "expected"), [(k1, REVERSE), (k2, 0.265478794403), (k3, REVERSE)])
def test_expected_values(estimator, expected):
    assert (P * estimator(P.log(), Q.log())).sum().item() == pytest.approx(expected, abs=1e-9)
    assert (P * (P / Q).log()).sum().item() == pytest.approx(REVERSE, abs=1e-9)
    assert (Q * (Q / P).log()).sum().item() == pytest.approx(FORWARD, abs=1e-9)


@pytest.mark.parametrize(("estimator", "expected"), [(k1, [0, 0, 0]), (k2, REVERSE_GRADIENT), (k3, [0.3, -0.2, -0.1])])
def test_expected_gradients_as_losses(estimator, expected):
    logits = P.log().requires_grad_()
    # The sampling weights are constants: a loss on a fixed sample has no gradient through the sampling.
    (P * estimator(logits.log_softmax(0), Q.log())).sum().backward()
    assert logits.grad.tolist() == pytest.approx(expected, abs=1e-9)
