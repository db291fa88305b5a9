"""Metrics that any split of an update reports alike: a sum with its count, or a maximum.

Micro-batches are joined with `merge`, ranks by adding and maximising the two tensors of `pack`.
Which names there are depends on the objective and its settings, never on the data, so ranks always agree on the layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rlkd_nemo.errors import ShapeError


@dataclass(frozen=True)
class Metric:
    """One quantity over tokens; both tensors are 0-dim float64 and detached.

    Attributes:
        how: `mean` (total is a sum, to be divided by count) or `max` (total is the largest value so far).
        total: the sum or the maximum; 0 or -inf when nothing was measured.
        count: how many tokens were measured.
    """

    how: str
    total: Tensor
    count: Tensor

    @classmethod
    def mean(cls, values: Tensor, where: Tensor) -> Metric:
        """Mean of `values` over the true positions of `where` (same shape); booleans give a share."""
        kept = values.detach().to(torch.float64).masked_fill(~where, 0.0)
        return cls("mean", kept.sum(), where.sum(dtype=torch.float64))

    @classmethod
    def max(cls, values: Tensor, where: Tensor) -> Metric:
        """Largest of `values` over the true positions of `where` (same shape)."""
        kept = values.detach().to(torch.float64).masked_fill(~where, -torch.inf)
        # amax refuses a tensor without elements, and a rank may hold an empty micro-batch.
        total = kept.amax() if kept.numel() else kept.new_full((), -torch.inf)
        return cls("max", total, where.sum(dtype=torch.float64))

    @classmethod
    def constant(cls, value: float, device: torch.device) -> Metric:
        """A number all tokens and ranks share, such as a coefficient; a maximum, so that joining keeps it exact."""
        total = torch.full((), value, dtype=torch.float64, device=device)
        return cls("max", total, torch.ones_like(total))

    def merge(self, other: Metric) -> Metric:
        """The metric over the tokens of both."""
        if self.how != other.how:
            raise ShapeError(f"a {self.how} cannot be merged with a {other.how}; one name must declare one kind")
        total = self.total + other.total if self.how == "mean" else torch.maximum(self.total, other.total)
        return Metric(self.how, total, self.count + other.count)

    def value(self) -> Tensor:
        """0-dim: the mean or the maximum; NaN when nothing was measured, for a missing value is not 0."""
        value = self.total / self.count if self.how == "mean" else self.total
        return torch.where(self.count > 0, value, torch.full_like(value, torch.nan))


def merge(first: Mapping[str, Metric], second: Mapping[str, Metric]) -> dict[str, Metric]:
    """Metrics over the tokens of both. Raises: ShapeError when their names differ."""
    if first.keys() != second.keys():
        raise ShapeError(
            f"metrics with different names cannot be merged; only in one: {sorted(first.keys() ^ second.keys())}"
        )
    return {name: metric.merge(second[name]) for name, metric in first.items()}


def pack(metrics: Mapping[str, Metric]) -> tuple[Tensor, Tensor]:
    """Two float64 tensors for two collectives, rows in sorted order of names.

    Returns: sums [names, 2] of (sum, count), to be added over ranks (the sum of a maximum is 0); maxima [names], to be
        maximised over ranks (-inf for a mean).
    """
    rows = [metrics[name] for name in sorted(metrics)]
    if not rows:
        return torch.zeros(0, 2, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    totals = torch.stack([m.total if m.how == "mean" else torch.zeros_like(m.total) for m in rows])
    sums = torch.stack((totals, torch.stack([m.count for m in rows])), dim=1)
    maxima = torch.stack([m.total if m.how == "max" else torch.full_like(m.total, -torch.inf) for m in rows])
    return sums, maxima


def unpack(like: Mapping[str, Metric], sums: Tensor, maxima: Tensor) -> dict[str, Metric]:
    """Inverse of `pack`; `like` gives names and kinds.

    Raises: ShapeError when the tensors have not one row a name.
    """
    if sums.shape != (len(like), 2) or maxima.shape != (len(like),):
        raise ShapeError(
            f"packed metrics of shapes {tuple(sums.shape)} and {tuple(maxima.shape)} do not fit {len(like)} names; "
            f"wanted ({len(like)}, 2) and ({len(like)},)"
        )
    return {
        name: Metric(like[name].how, sums[row, 0] if like[name].how == "mean" else maxima[row], sums[row, 1])
        for row, name in enumerate(sorted(like))
    }


@dataclass(frozen=True)
class Measured:
    """A `Metric` in plain numbers: kind, sum or maximum, and how many tokens were measured (never none)."""

    how: str
    total: float
    count: float

    def value(self) -> float:
        """The mean or the maximum."""
        return self.total / self.count if self.how == "mean" else self.total


def measured(metrics: Mapping[str, Metric]) -> dict[str, Measured]:
    """Plain numbers, in one transfer; a metric that measured nothing is left out.

    This one waits for the device: call it once an update, outside the losses.
    """
    if not metrics:
        return {}
    rows = torch.stack([torch.stack((metric.total, metric.count)) for metric in metrics.values()]).tolist()
    return {
        name: Measured(metric.how, total, count)
        for (name, metric), (total, count) in zip(metrics.items(), rows, strict=True)
        if count > 0
    }


def values(found: Mapping[str, Measured]) -> dict[str, float]:
    """For the log."""
    return {name: one.value() for name, one in found.items()}


def summary(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """`values` of what was `measured`."""
    return values(measured(metrics))


class Tally:
    """Metrics of several updates as of one: means over the tokens of all of them, not means of their means."""

    def __init__(self) -> None:
        self._found: dict[str, Measured] = {}

    def add(self, found: Mapping[str, Measured]) -> None:
        """Those of one update. What it did not measure has no weight."""
        for name, one in found.items():
            before = self._found.get(name)
            if before is None:
                self._found[name] = one
                continue
            total = before.total + one.total if one.how == "mean" else max(before.total, one.total)
            self._found[name] = Measured(one.how, total, before.count + one.count)

    def values(self) -> dict[str, float]:
        """For the log."""
        return values(self._found)
