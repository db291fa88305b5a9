"""Arithmetic of a gathered rollout batch in NeMo-Aligner's layout: masks, advantages, weights, and whose rows are whose.

Layout: `response_tokens` [rows, S] holds prompt and response; every per-token tensor is [rows, S-1], column t about token
t+1. All of it runs alike on every rank, on the batch of all data-parallel ranks, so no sum is ever taken over a part.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlkd_nemo.advantages import group_advantages
from rlkd_nemo.config.aligner import AlignerRlkd
from rlkd_nemo.config.objectives import PolicyObjective
from rlkd_nemo.errors import FailureBudgetError, ShapeError
from rlkd_nemo.losses.reduce import token_weights


def response_mask(prompt_lengths: Tensor, response_lengths: Tensor, sequence_length: int) -> Tensor:
    """bool [rows, S-1], true where column t predicts a response token, the end included.

    Args: prompt_lengths, response_lengths: int64 [rows]; the second counts prompt, response and end token.
    """
    column = torch.arange(sequence_length - 1, device=prompt_lengths.device)
    return (column >= prompt_lengths[:, None] - 1) & (column < response_lengths[:, None] - 1)


def update_share(groups: Tensor, per_update: int, rank: int, size: int) -> Tensor:
    """Rows of data-parallel rank `rank` of `size`, update after update: int64 [rows / size].

    The rows of a group stay together, in their order, so that an update of `per_update` rows is made of whole groups.

    Args: groups: int64 [rows] of the whole batch, any numbers.
    Raises: ShapeError when it does not divide.
    """
    if len(groups) % per_update or per_update % size:
        raise ShapeError(
            f"{len(groups)} rollouts in updates of {per_update} over {size} data-parallel ranks do not divide; "
            "change model.global_batch_size or model.reinforce.num_rollout_samples"
        )
    order = torch.argsort(groups, stable=True)
    share = per_update // size
    return order.view(-1, size, share)[:, rank].reshape(-1)


def score_rows(
    rewards: Tensor,
    groups: Tensor,
    is_end: Tensor,
    mask: Tensor,
    *,
    per_update: int,
    settings: AlignerRlkd,
    objective: PolicyObjective,
    max_new_tokens: int,
) -> dict[str, Tensor]:
    """Advantages and weights of every row of the whole batch.

    Args:
        rewards: float32 [rows], NaN where there is none.   groups: int64 [rows].   is_end: bool [rows].
        mask: bool [rows, S-1], see `response_mask`.
    Returns: `valid` bool [rows], `advantages` float32 [rows, 1], `mask` bool and `weights` float32 [rows, S-1], both
        false or 0 on rows that do not count.
    Raises: ShapeError; NonFiniteError for an infinite reward.
    """
    valid = ~torch.isnan(rewards)
    if settings.mask_unfinished:
        valid = valid & is_end.bool()
    advantages = group_advantages(rewards, groups, valid, settings.advantage_std)
    order = torch.argsort(groups, stable=True)
    weights = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    for rows in order.view(-1, per_update):  # each update has its own denominators
        weights[rows] = token_weights(
            mask[rows], valid[rows], objective.aggregation, max_new_tokens=max_new_tokens
        ).float()
    return {
        "valid": valid,
        "advantages": advantages.float()[:, None],
        "mask": mask & valid[:, None],
        "weights": weights,
    }


def refuse_too_many_failures(rewards: Tensor, allowed: float, key: str) -> None:
    """Raises: FailureBudgetError when a larger share than `allowed` of the rollouts has no reward (NaN)."""
    failed = int(torch.isnan(rewards).sum())
    if failed > allowed * len(rewards):
        raise FailureBudgetError(
            f"{failed} of {len(rewards)} rollouts have no reward; {key} allows {allowed:g}. Nothing was learned from "
            "them; the reward server's log says why. Repair it or raise the limit; the last checkpoint stands"
        )
