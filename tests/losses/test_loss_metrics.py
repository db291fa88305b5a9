from __future__ import annotations

import math

import pytest
import torch

from rlkd_nemo.errors import ShapeError
from rlkd_nemo.losses.metrics import Measured, Metric, Tally, measured, merge, pack, summary, unpack, values


def over(values: list[float], where: list[bool]) -> dict[str, Metric]:
    numbers, places = torch.tensor([values]).reshape(1, -1), torch.tensor([where], dtype=torch.bool).reshape(1, -1)
    return {
        "average": Metric.mean(numbers, places),
        "largest": Metric.max(numbers, places),
        "beta": Metric.constant(0.1, numbers.device),
    }


@pytest.fixture
def parts() -> list[dict[str, Metric]]:
    nan = float("nan")
    return [over([1.0, 2.0, nan], [True, True, False]), over([], []), over([6.0], [True])]


def test_values_by_hand(parts):
    # Over the three kept tokens: (1 + 2 + 6) / 3, not the mean of the means 1.5 and 6.
    whole = merge(merge(parts[0], parts[1]), parts[2])
    assert summary(whole) == {"average": 3.0, "largest": 6.0, "beta": 0.1}
    assert whole["average"].count == 3


def test_packed_over_ranks_equals_merged(parts):
    packed = [pack(part) for part in parts]
    sums, maxima = sum(s for s, _ in packed), torch.stack([m for _, m in packed]).amax(0)
    joined = unpack(parts[0], sums, maxima)
    assert summary(joined) == {"average": 3.0, "largest": 6.0, "beta": 0.1}
    assert sums.shape == (3, 2)
    assert maxima.shape == (3,)


def test_what_was_not_measured_is_absent_and_never_zero():
    nothing = over([1.0], [False])
    assert summary(nothing) == {"beta": 0.1}
    assert math.isnan(nothing["average"].value()) and math.isnan(nothing["largest"].value())
    assert summary({}) == {}


def test_metrics_are_detached_scalars():
    values = torch.ones(2, 2, requires_grad=True)
    for metric in (Metric.mean(values, values > 0), Metric.max(values, values > 0)):
        assert metric.total.ndim == metric.count.ndim == 0
        assert not metric.total.requires_grad


def test_differences_are_refused(parts):
    with pytest.raises(ShapeError, match="largest"):
        merge(parts[0], {"average": parts[0]["average"], "beta": parts[0]["beta"]})
    with pytest.raises(ShapeError, match="mean cannot be merged with a max"):
        parts[0]["average"].merge(parts[0]["largest"])
    with pytest.raises(ShapeError, match="do not fit 3 names"):
        unpack(parts[0], torch.zeros(2, 2), torch.zeros(2))


def test_updates_are_joined_by_their_tokens(parts):
    tally = Tally()
    for part in parts:
        tally.add(measured(part))
    # (1 + 2 + 6) / 3 again; the empty part, which measured nothing, has no weight
    assert tally.values() == {"average": 3.0, "largest": 6.0, "beta": 0.1}
    assert measured(parts[0])["average"] == Measured("mean", 3.0, 2.0)
    assert values(measured(parts[0])) == summary(parts[0])
