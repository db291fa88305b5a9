"""GRPO plus a divergence from the teacher on the student's own rollouts."""

from __future__ import annotations

import torch
from torch import Tensor

from rlkd_nemo.config.objectives import KD_MASKS, KDRL, KL_ESTIMATORS, needs_teacher
from rlkd_nemo.errors import ConfigError, ShapeError
from rlkd_nemo.losses.batch import TokenBatch, TokenLoss
from rlkd_nemo.losses.kl import k2, k3
from rlkd_nemo.losses.metrics import Metric
from rlkd_nemo.losses.surrogate import policy_term, token_loss
from rlkd_nemo.losses.teacher import influence_share, teacher_tokens


def beta_at(settings: KDRL, step: int) -> float:
    """Coefficient of the teacher term: max(beta - beta_decay * step, beta_min)."""
    return max(settings.beta - settings.beta_decay * step, settings.beta_min)


def teacher_rows(kd_mask: str, correct: Tensor, groups: Tensor) -> Tensor:
    """Rows on which the teacher's term applies; to be joined into `TokenBatch.teacher_mask`.

    Source: arXiv:2506.02208, reward-guided masking. Denominators do not change: the term is averaged over all tokens,
    those it was taken from included.

    Args:
        kd_mask: none: every row; response: rows that are not correct; group: rows of groups without a correct one.
        correct: bool [rows], true where the outcome was verified.   groups: integer [rows].
    Returns: bool [rows].
    Raises: ShapeError, ConfigError.
    """
    if correct.ndim != 1 or correct.dtype != torch.bool or groups.shape != correct.shape:
        raise ShapeError(
            f"correct is {correct.dtype} {tuple(correct.shape)} and groups {tuple(groups.shape)}; "
            "wanted torch.bool and equal shapes [rows]"
        )
    if kd_mask == "none":
        return torch.ones_like(correct)
    if kd_mask == "response":
        return ~correct
    if kd_mask == "group":
        return ~torch.isin(groups, groups[correct])
    raise ConfigError(f"objective.kd_mask={kd_mask!r} is unknown; wanted one of {', '.join(KD_MASKS)}")


def _divergence(estimator: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The estimator per token and its derivative with respect to l_S, detached."""
    if estimator == "k2":
        return k2(student, teacher), (student - teacher).detach()
    if estimator == "k3":
        return k3(student, teacher), -torch.expm1((teacher - student).detach())
    raise ConfigError(f"objective.estimator={estimator!r} is unknown; wanted one of {', '.join(KL_ESTIMATORS)}")


def kdrl(batch: TokenBatch, settings: KDRL, step: int = 0) -> TokenLoss:
    """GRPO's term plus beta * k2 (or k3) of student against teacher, on every token of teacher_mask.

    Source: arXiv:2506.02208. As a loss k2 follows the reverse KL(student||teacher), k3 the forward KL. Differs from it
    in: l_T at least `teacher.FLOOR`; when the student has moved since the rollouts, the teacher term carries no
    importance weight.
    Args:
        batch: TokenBatch with teacher_log_probs, unless beta is 0 throughout.   settings: KDRL.   step: drives beta.
    Returns: TokenLoss: per_token [batch, tokens] (minimise) and metrics, detached; `kd_loss` is the term as it was
        added, over all tokens, so that policy_loss + kd_loss is the token mean of both.
    Raises: ShapeError, ConfigError. Non-finite values inside the mask other than the teacher's pass through.
    """
    batch = batch.masked()
    beta, mask = beta_at(settings, step), batch.mask
    policy = policy_term(batch, batch.log_probs - batch.old_log_probs, batch.advantages, settings)
    metrics = {**policy.metrics, "beta": Metric.constant(beta, mask.device)}
    if not needs_teacher(settings):
        return token_loss(batch, settings, policy.loss, metrics)

    teacher = teacher_tokens(batch, "kdrl")
    divergence, slope = _divergence(settings.estimator, batch.log_probs, teacher.log_probs)
    distillation = beta * divergence.masked_fill(~teacher.where, 0.0)
    pull = beta * slope.masked_fill(~teacher.where, 0.0)
    metrics |= {
        "kd_loss": Metric.mean(distillation, mask),
        "teacher_influence_share": influence_share(policy.slope + pull, policy.slope, mask),
        **teacher.metrics(batch),
    }
    return token_loss(batch, settings, policy.loss + distillation, metrics)
