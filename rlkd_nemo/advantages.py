"""From rewards to advantages: normalisation within a group of responses to one prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlkd_nemo.errors import ConfigError, NonFiniteError, ShapeError

STDS = ("population", "sample", "none")
ZERO_VARIANCE = 1e-8  # a population deviation up to this is rounding, not signal
SAMPLE_EPSILON = 1e-4  # added to the sample deviation by TRL and by RLKD's release


@dataclass(frozen=True, eq=False)
class _Groups:
    """Statistics of the valid rows: `row` [rows] indexes the per-group tensors [groups]."""

    row: Tensor
    count: Tensor
    centred: Tensor  # [rows]; 0 on invalid rows
    squares: Tensor  # sum of centred^2

    @property
    def deviation(self) -> Tensor:
        """Population standard deviation, [groups]; 0 for an empty group."""
        return (self.squares / self.count.clamp(min=1)).sqrt()


def _statistics(rewards: Tensor, groups: Tensor, valid: Tensor) -> _Groups:
    if rewards.ndim != 1 or groups.shape != rewards.shape or valid.shape != rewards.shape or valid.dtype != torch.bool:
        raise ShapeError(
            f"rewards {tuple(rewards.shape)}, groups {tuple(groups.shape)}, valid {valid.dtype} {tuple(valid.shape)}; "
            "wanted equal shapes [rows] and a torch.bool valid"
        )
    # An invalid row's reward may be NaN: it must be gone before the first sum.
    kept = rewards.detach().to(torch.float64).masked_fill(~valid, 0.0)
    if not torch.isfinite(kept).all():
        bad = (~torch.isfinite(kept)).nonzero().flatten().tolist()
        raise NonFiniteError(f"rewards of valid rows {bad} are not finite; mark a row without a reward as invalid")
    names, row = torch.unique(groups, return_inverse=True)

    def per_group(values: Tensor) -> Tensor:
        return values.new_zeros(len(names)).index_add_(0, row, values)

    count = per_group(valid.to(torch.float64))
    mean = per_group(kept) / count.clamp(min=1)
    centred = (kept - mean[row]).masked_fill(~valid, 0.0)
    return _Groups(row, count, centred, per_group(centred.square()))


def group_advantages(rewards: Tensor, groups: Tensor, valid: Tensor, std: str = "population") -> Tensor:
    """(R - mean) / deviation within each group, over its valid rows.

    Source: arXiv:2402.03300 and 2602.22495 (population), TRL and RLKD's release (sample deviation + 1e-4),
    arXiv:2503.20783 (none: R - mean).

    Args:
        rewards: [rows], any scale; entries of invalid rows are not read and may be NaN.
        groups: integer [rows]; equal numbers share a prompt; any order.
        valid: bool [rows]; an invalid row leaves mean and deviation and gets 0.
        std: `population`, `sample` or `none`.
    Returns: float64 [rows]; 0 for a group with fewer than two valid rows or whose rewards are equal (population
        deviation at most 1e-8), whatever `std`.
    Raises: ShapeError; NonFiniteError for a non-finite valid reward; ConfigError for another `std`.
    """
    if std not in STDS:
        raise ConfigError(f"rlkd.advantage.std={std!r} is unknown; wanted one of {', '.join(STDS)}")
    stats = _statistics(rewards, groups, valid)
    if std == "population":
        scale = stats.deviation
    elif std == "sample":
        scale = (stats.squares / (stats.count - 1).clamp(min=1)).sqrt() + SAMPLE_EPSILON
    else:
        scale = torch.ones_like(stats.squares)
    usable = (stats.count >= 2) & (stats.deviation > ZERO_VARIANCE)
    scale = torch.where(usable, scale, torch.ones_like(scale))
    return (stats.centred / scale[stats.row]).masked_fill(~usable[stats.row], 0.0)


@dataclass(frozen=True)
class GroupStatistics:
    """How many groups can teach.

    Attributes:
        groups: all groups.
        too_few: groups with fewer than two valid rows.
        zero_variance: groups with at least two valid rows, all of equal reward.
    """

    groups: int
    too_few: int
    zero_variance: int

    @property
    def zero_variance_fraction(self) -> float | None:
        """Share of zero_variance among the groups with at least two valid rows; None when there is none of those."""
        scored = self.groups - self.too_few
        return self.zero_variance / scored if scored else None


def group_statistics(rewards: Tensor, groups: Tensor, valid: Tensor) -> GroupStatistics:
    """Counts of groups that give no gradient; arguments and errors as `group_advantages`."""
    stats = _statistics(rewards, groups, valid)
    enough = stats.count >= 2
    flat = enough & (stats.deviation <= ZERO_VARIANCE)
    return GroupStatistics(len(stats.count), int((~enough).sum()), int(flat.sum()))


def overlong_penalty(length: int, max_tokens: int, buffer: int) -> float:
    """DAPO's length penalty, to be added to the reward: 0 up to max_tokens - buffer, then linear to -1 at max_tokens.

    Source: arXiv:2503.14476 eq. for soft overlong punishment; beyond max_tokens it stays at -1.

    Args: length, max_tokens, buffer: tokens; 0 <= buffer <= max_tokens.
    Raises: ConfigError when the buffer does not fit.
    """
    if not 0 <= buffer <= max_tokens:
        raise ConfigError(
            f"rlkd.overlong.buffer_tokens={buffer} is out of range; wanted 0 to max_new_tokens={max_tokens}"
        )
    over = length - (max_tokens - buffer)
    if over <= 0:
        return 0.0
    return -min(over / buffer, 1.0) if buffer else -1.0
