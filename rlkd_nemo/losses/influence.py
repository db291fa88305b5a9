"""Does the teacher matter? A loss whose gradient ignores its teacher trains without complaint, so it is measured."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rlkd_nemo.config.objectives import TRRD, PolicyObjective, needs_teacher
from rlkd_nemo.errors import NonFiniteError, ShapeError
from rlkd_nemo.losses import Objective, load
from rlkd_nemo.losses.batch import TokenBatch


def _coefficients(objective: Objective, settings: PolicyObjective, batch: TokenBatch, step: int) -> Tensor:
    """d per_token / d l_S, [batch, tokens]; per_token is elementwise in l_S, so one backward gives every token's."""
    log_probs = batch.log_probs.detach().requires_grad_()
    per_token = objective(replace(batch, log_probs=log_probs), settings, step).per_token
    return torch.autograd.grad(per_token.sum(), log_probs)[0].masked_fill(~batch.mask, 0.0)


@torch.enable_grad()
def teacher_influence(objective: Objective, settings: PolicyObjective, batch: TokenBatch, step: int = 0) -> float:
    """sum |g(T) - g(T := old)| / sum |g(T)| over tokens, g = d per_token / d l_S; no model is involved.

    0: the gradient is the same with the teacher replaced by the old policy. It may exceed 1, for the teacher can turn
    gradients round. A batch without any gradient gives 0.

    Raises: ShapeError without teacher_log_probs; NonFiniteError when a coefficient is NaN or infinite.
    """
    if batch.teacher_log_probs is None:
        raise ShapeError("teacher influence needs batch.teacher_log_probs; got None")
    taught = _coefficients(objective, settings, batch, step)
    untaught = _coefficients(objective, settings, replace(batch, teacher_log_probs=batch.old_log_probs), step)
    moved, size = (taught - untaught).abs().sum().item(), taught.abs().sum().item()
    if not all(value < float("inf") for value in (moved, size)):  # NaN compares false
        raise NonFiniteError(
            f"teacher influence: gradient coefficients sum to {size} and differ by {moved}; wanted finite numbers"
        )
    return moved / size if size > 0 else 0.0


def synthetic_batch(seed: int = 0, rows: int = 8, tokens: int = 32) -> TokenBatch:
    """Random float64 log-probs, every field filled: advantages +1 and -1, ratios around 1, a teacher some nats away."""
    generator = torch.Generator().manual_seed(seed)

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(rows, tokens, generator=generator, dtype=torch.float64)

    old = -0.05 - 3.0 * torch.rand(rows, tokens, generator=generator, dtype=torch.float64)
    advantages = torch.ones(rows, 1, dtype=torch.float64)
    advantages[1::2] = -1.0
    return TokenBatch(
        log_probs=old + noise(0.2),
        old_log_probs=old,
        advantages=advantages,
        mask=torch.ones(rows, tokens, dtype=torch.bool),
        teacher_log_probs=old + noise(2.0),
        ref_log_probs=old + noise(0.3),
        sampler_log_probs=old + noise(0.05),
    )


def self_test(name: str, settings: PolicyObjective, seed: int = 0) -> float | None:
    """Influence of the teacher on objective `name` with these settings, on a synthetic batch.

    A schedule is tried at both ends and the larger influence counts, for a teacher may come in late.

    Returns: the influence, or None where there is none by design (GRPO, TRRD with alpha = 1, KDRL with beta = 0).
    """
    objective = load(name)
    if not needs_teacher(settings):
        return None
    steps = {0, settings.alpha_steps} if isinstance(settings, TRRD) else {0}
    batch = synthetic_batch(seed)
    return max(teacher_influence(objective, settings, batch, step) for step in steps)
