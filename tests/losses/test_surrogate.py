from __future__ import annotations

import pytest
import torch

from rlkd_nemo.config.objectives import GRPO
from rlkd_nemo.losses.influence import synthetic_batch
from rlkd_nemo.losses.surrogate import policy_term, token_loss


@pytest.mark.parametrize(
    "settings", [GRPO(), GRPO(dual_clip=1.1), GRPO(tis_cap=1.02), GRPO(dual_clip=1.1, tis_cap=1.02)]
)
def test_slope_and_clipped_describe_the_gradient(settings):
    batch = synthetic_batch(4).masked()
    log_ratio = (2 * (batch.log_probs - batch.old_log_probs)).requires_grad_()
    term = policy_term(batch, log_ratio, batch.advantages, settings)
    gradient = torch.autograd.grad(term.loss.sum(), log_ratio)[0]
    torch.testing.assert_close(term.slope, gradient, rtol=1e-12, atol=0)
    assert torch.equal(term.clipped, gradient == 0)
    assert 0 < term.clipped.sum() < term.clipped.numel()


def test_masked_tokens_are_zero_whatever_an_objective_left_there(two_responses):
    loss = token_loss(two_responses.masked(), GRPO(), torch.ones(2, 3, dtype=torch.float64), {})
    assert loss.per_token.tolist() == [[1, 1, 1], [1, 1, 0]]
