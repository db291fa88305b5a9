"""Group relative policy optimisation: the objective without a teacher, and the limit of TRRD at alpha = 1."""

from __future__ import annotations

from rlkd_nemo.config.objectives import PolicyObjective
from rlkd_nemo.losses.batch import TokenBatch, TokenLoss
from rlkd_nemo.losses.surrogate import policy_term, token_loss


def grpo(batch: TokenBatch, settings: PolicyObjective, step: int = 0) -> TokenLoss:
    """Clipped policy gradient with the ratio rho = exp(l_S - l_old).

    Source: arXiv:2402.03300; two clip widths from arXiv:2503.14476.
    Args:
        batch: TokenBatch; teacher fields are not read.   settings: GRPO.   step: unused, there is no schedule.
    Returns: TokenLoss: per_token [batch, tokens] (minimise) and metrics, detached.
    Raises: ShapeError. Non-finite values inside the mask pass through: the caller checks before the update.
    """
    batch = batch.masked()
    policy = policy_term(batch, batch.log_probs - batch.old_log_probs, batch.advantages, settings)
    return token_loss(batch, settings, policy.loss, policy.metrics)
