"""On-policy distillation: the teacher's log-ratio is the advantage, no reward."""

from __future__ import annotations

import torch

from rlkd_nemo.config.objectives import OPD
from rlkd_nemo.losses.batch import TokenBatch, TokenLoss
from rlkd_nemo.losses.surrogate import policy_term, token_loss
from rlkd_nemo.losses.teacher import influence_share, teacher_tokens


def opd(batch: TokenBatch, settings: OPD, step: int = 0) -> TokenLoss:
    """Clipped policy gradient with advantage stop-gradient(l_T - l_old) for each token.

    Source: Thinking Machines, "On-Policy Distillation", October 2025 (discount 0). On the first update after the
    rollouts its expected gradient is that of the reverse KL(student||teacher), token by token. Differs from it in:
    the advantage uses the old policy, so that several updates on one batch keep it fixed; clipping; l_T at least
    `teacher.FLOOR`.
    Args:
        batch: TokenBatch with teacher_log_probs; advantages are not read; where teacher_mask is false the token teaches
            nothing.   settings: OPD.   step: unused, there is no schedule.
    Returns: TokenLoss: per_token [batch, tokens] (minimise) and metrics, detached.
    Raises: ShapeError. Non-finite values inside the mask other than the teacher's pass through.
    """
    batch = batch.masked()
    teacher = teacher_tokens(batch, "opd")
    advantages = teacher.log_probs - batch.old_log_probs  # 0 where the teacher has nothing to say
    policy = policy_term(batch, batch.log_probs - batch.old_log_probs, advantages, settings)
    metrics = {
        **policy.metrics,
        **teacher.metrics(batch),
        "teacher_influence_share": influence_share(policy.slope, torch.zeros_like(policy.slope), batch.mask),
    }
    return token_loss(batch, settings, policy.loss, metrics)
