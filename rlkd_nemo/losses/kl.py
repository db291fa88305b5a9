"""Per-token estimators of a KL divergence between the student p and another model q, on tokens sampled from p.

With u = l_q - l_p of the sampled token (joschu.net/blog/kl-approx). An estimator has two uses that must not be mixed
up: as a *value* to log, and as a *loss* whose gradient, taken through l_p of a fixed sample, is followed.

     value                                gradient when used as a loss
k1   -u           KL(p||q), unbiased      0 in expectation: no use as a loss
k2   u^2 / 2      KL(p||q), biased        that of KL(p||q), the reverse KL of distillation
k3   e^u - 1 - u  KL(p||q), unbiased, >=0 that of KL(q||p), the forward KL

All of it holds for samples of p itself; with samples of an older p no importance weight is applied.
"""

from __future__ import annotations

import torch
from torch import Tensor


def k1(log_probs: Tensor, other: Tensor) -> Tensor:
    """l_p - l_q, [batch, tokens], nats: unbiased and noisy value of KL(p||q); as a loss its mean gradient is 0."""
    return log_probs - other


def k2(log_probs: Tensor, other: Tensor) -> Tensor:
    """(l_q - l_p)^2 / 2, [batch, tokens]: as a loss it follows the gradient of the reverse KL(p||q)."""
    return 0.5 * (other - log_probs).square()


def k3(log_probs: Tensor, other: Tensor) -> Tensor:
    """exp(u) - 1 - u with u = l_q - l_p, [batch, tokens], >= 0: unbiased value of KL(p||q).

    As a loss it follows the gradient of the forward KL(q||p).
    """
    gap = other - log_probs
    return torch.expm1(gap) - gap
