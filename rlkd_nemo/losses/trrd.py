"""Trust-region ratio distillation: GRPO whose ratio is anchored between the old policy and the teacher."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlkd_nemo.config.objectives import CLAMPS, TRRD, needs_teacher
from rlkd_nemo.errors import ConfigError
from rlkd_nemo.losses.batch import TokenBatch, TokenLoss
from rlkd_nemo.losses.metrics import Metric
from rlkd_nemo.losses.surrogate import clip_sides, policy_term, token_loss
from rlkd_nemo.losses.teacher import TeacherTokens, influence_share, teacher_tokens


def alpha_at(settings: TRRD, step: int) -> float:
    """Weight of the old policy in the anchor: linear from alpha to alpha_final over alpha_steps, then constant."""
    if settings.alpha_steps == 0:
        return settings.alpha
    if step >= settings.alpha_steps:
        return settings.alpha_final  # exactly: at 1 the teacher must be gone, not almost gone
    return settings.alpha + (settings.alpha_final - settings.alpha) * step / settings.alpha_steps


@dataclass(frozen=True, eq=False)
class MixedRatio:
    """log r [batch, tokens]; its slope d log r / d l_S, detached; saturated: bool, true where the clamp bit."""

    log_ratio: Tensor
    slope: Tensor
    saturated: Tensor


def mixed_ratio(batch: TokenBatch, teacher: TeacherTokens, settings: TRRD, alpha: float) -> MixedRatio:
    """log r of arXiv:2602.22495 eq. for TRRD, with the clamp of its appendix B.

    ratio:  alpha (l_S - l_old) + (1 - alpha) clip(l_S - l_T, -c, c); a saturated token passes alpha of the gradient.
    anchor: (l_S - l_old) - (1 - alpha) clip(l_T - l_old, -c, c); as `ratio` where nothing saturates, gradient whole.
    none:   alpha (l_S - l_old) + (1 - alpha) (l_S - l_T).
    Where the teacher has nothing to say: l_S - l_old, unclamped.

    Raises: ConfigError for another clamp.
    """
    own = batch.log_probs - batch.old_log_probs
    gap = batch.log_probs - teacher.log_probs
    limit, whole = settings.clamp_value, torch.ones_like(own).detach()
    if settings.clamp == "ratio":
        saturated = teacher.where & (gap.detach().abs() > limit)
        mixed = alpha * own + (1 - alpha) * gap.clamp(-limit, limit)
        slope = torch.where(saturated, alpha * whole, whole)
    elif settings.clamp == "anchor":
        pull = teacher.log_probs - batch.old_log_probs
        saturated = teacher.where & (pull.abs() > limit)
        mixed, slope = own - (1 - alpha) * pull.clamp(-limit, limit), whole
    elif settings.clamp == "none":
        saturated = torch.zeros_like(teacher.where)
        mixed, slope = alpha * own + (1 - alpha) * gap, whole
    else:
        raise ConfigError(f"objective.clamp={settings.clamp!r} is unknown; wanted one of {', '.join(CLAMPS)}")
    # At alpha = 1 the mixture is dropped, not multiplied by 0: an infinite gap times 0 would be NaN.
    return MixedRatio(own if alpha == 1.0 else torch.where(teacher.where, mixed, own), slope, saturated)


def trrd(batch: TokenBatch, settings: TRRD, step: int = 0) -> TokenLoss:
    """Clipped policy gradient with the ratio r = pi_S / (pi_old^alpha pi_T^(1 - alpha)).

    Source: arXiv:2602.22495, section 4 and appendix B; differs from it in: optional schedule of alpha, optional clamp
    of the anchor in place of the ratio, l_T at least `teacher.FLOOR`. With alpha = 1 it is GRPO to the last bit; one
    sentence of section 4 states the opposite end, its formula does not.
    Args:
        batch: TokenBatch with teacher_log_probs, unless alpha is 1 throughout.   settings: TRRD.   step: drives alpha.
    Returns: TokenLoss: per_token [batch, tokens] (minimise) and metrics, detached.
    Raises: ShapeError, ConfigError. Non-finite values inside the mask other than the teacher's pass through.
    Not handled: a teacher with another vocabulary.
    """
    batch = batch.masked()
    alpha, mask, advantages = alpha_at(settings, step), batch.mask, batch.advantages
    own = batch.log_probs - batch.old_log_probs
    importance = own.detach().exp()
    metrics = {
        "alpha": Metric.constant(alpha, mask.device),
        "importance_ratio_mean": Metric.mean(importance, mask),
        "importance_ratio_max": Metric.max(importance, mask),
    }
    if not needs_teacher(settings):
        policy = policy_term(batch, own, advantages, settings)
        return token_loss(batch, settings, policy.loss, {**policy.metrics, **metrics})

    teacher = teacher_tokens(batch, "trrd")
    mixed = mixed_ratio(batch, teacher, settings, alpha)
    policy = policy_term(batch, mixed.log_ratio, advantages, settings)

    # What GRPO would have done with the same token tells a clip by the teacher from a clip by staleness.
    stale_high, stale_low = clip_sides(importance, advantages, settings)
    stale = stale_high | stale_low
    ratio_slope = (-mixed.log_ratio.detach().exp() * advantages * mixed.slope).masked_fill(policy.clipped, 0.0)
    own_slope = (-importance * advantages).masked_fill(stale, 0.0)
    metrics |= {
        "clip_by_teacher_fraction": Metric.mean(policy.clipped & ~stale, mask),
        "clip_by_staleness_fraction": Metric.mean(policy.clipped & stale, mask),
        "teacher_influence_share": influence_share(ratio_slope, own_slope, mask),
        **teacher.metrics(batch),
    }
    if settings.clamp != "none":
        metrics["teacher_clamped_fraction"] = Metric.mean(mixed.saturated, teacher.where)
    return token_loss(batch, settings, policy.loss, {**policy.metrics, **metrics})
