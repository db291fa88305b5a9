"""The clipped policy-gradient term that all objectives share, and what is added beside it.

An objective brings its own log-ratio and advantages; clipping, importance weights, the KL to the reference and their
metrics are here once, so that two objectives with equal log-ratios are equal to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlkd_nemo.config.objectives import PolicyObjective
from rlkd_nemo.errors import ShapeError
from rlkd_nemo.losses.batch import TokenBatch, TokenLoss
from rlkd_nemo.losses.kl import k3
from rlkd_nemo.losses.metrics import Metric


@dataclass(frozen=True, eq=False)
class PolicyTerm:
    """The policy term of each token, [batch, tokens].

    Attributes:
        loss: to be minimised; carries the gradient.
        slope: d loss / d log_ratio, detached; 0 on clipped tokens.
        clipped: bool, true where clipping removed the gradient.
        metrics: of this term.
    """

    loss: Tensor
    slope: Tensor
    clipped: Tensor
    metrics: dict[str, Metric]


def clip_sides(ratio: Tensor, advantages: Tensor, settings: PolicyObjective) -> tuple[Tensor, Tensor]:
    """Where clipping removes the gradient: bool [batch, tokens] at the upper and at the lower side.

    Upper: A > 0 and ratio > 1 + clip_high, or A < 0 and ratio > dual_clip. Lower: A < 0 and ratio < 1 - clip_low.
    """
    negative = advantages < 0
    high = (advantages > 0) & (ratio > 1 + settings.clip_high)
    if settings.dual_clip is not None:
        high = high | (negative & (ratio > settings.dual_clip))
    return high, negative & (ratio < 1 - settings.clip_low)


def importance_weight(batch: TokenBatch, cap: float) -> Tensor:
    """min(exp(l_old - l_sampler), cap), [batch, tokens], detached: corrects for a sampler that is not the trainer.

    Source: Yao et al., August 2025, truncated importance sampling.
    Raises: ShapeError when the batch has no sampler_log_probs.
    """
    if batch.sampler_log_probs is None:
        raise ShapeError(
            f"objective.tis_cap={cap} needs batch.sampler_log_probs; got None; give them or set tis_cap: null"
        )
    return (batch.old_log_probs - batch.sampler_log_probs).exp().clamp(max=cap)


def policy_term(batch: TokenBatch, log_ratio: Tensor, advantages: Tensor, settings: PolicyObjective) -> PolicyTerm:
    """max(-r A, -clip(r, 1 - clip_low, 1 + clip_high) A) with r = exp(log_ratio).

    Source: arXiv:2402.03300 (surrogate), arXiv:2503.14476 (two clip widths); dual clip bounds the loss of A < 0 at
    dual_clip |A|; the importance weight multiplies the term outside max and clip.

    Args:
        batch: as `TokenBatch.masked` returns it.
        log_ratio, advantages: [batch, tokens]; finite where the mask is false.
    """
    ratio = log_ratio.exp()
    loss = torch.maximum(-ratio * advantages, -ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high) * advantages)
    if settings.dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -settings.dual_clip * advantages), loss)

    mask, fixed_ratio = batch.mask, ratio.detach()
    high, low = clip_sides(fixed_ratio, advantages, settings)
    clipped = high | low
    slope = (-fixed_ratio * advantages).masked_fill(clipped, 0.0)
    metrics = {
        "ratio_mean": Metric.mean(fixed_ratio, mask),
        "ratio_max": Metric.max(fixed_ratio, mask),
        "clip_fraction_high": Metric.mean(high, mask),
        "clip_fraction_low": Metric.mean(low, mask),
        "clip_fraction_positive": Metric.mean(clipped, mask & (advantages > 0)),
        "clip_fraction_negative": Metric.mean(clipped, mask & (advantages < 0)),
        "kl_old": Metric.mean(k3(batch.log_probs.detach(), batch.old_log_probs), mask),
    }
    if settings.tis_cap is not None:
        weight = importance_weight(batch, settings.tis_cap)
        loss, slope = weight * loss, weight * slope
        metrics["tis_weight_mean"] = Metric.mean(weight, mask)
        metrics["tis_capped_fraction"] = Metric.mean(weight >= settings.tis_cap, mask)
    metrics["policy_loss"] = Metric.mean(loss, mask)
    return PolicyTerm(loss, slope, clipped, metrics)


def token_loss(
    batch: TokenBatch, settings: PolicyObjective, per_token: Tensor, metrics: dict[str, Metric]
) -> TokenLoss:
    """Add reference_kl * k3(student, reference) and make masked tokens exactly 0.

    Raises: ShapeError when reference_kl > 0 and the batch has no ref_log_probs.
    """
    if settings.reference_kl > 0:
        if batch.ref_log_probs is None:
            raise ShapeError(
                f"objective.reference_kl={settings.reference_kl} needs batch.ref_log_probs; got None; "
                "give them or set it to 0"
            )
        penalty = k3(batch.log_probs, batch.ref_log_probs)
        per_token = per_token + settings.reference_kl * penalty
        metrics = {**metrics, "kl_ref": Metric.mean(penalty, batch.mask)}
    return TokenLoss(per_token.masked_fill(~batch.mask, 0.0), metrics)
