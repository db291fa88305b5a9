from __future__ import annotations

import pytest
import torch

from rlkd_nemo.advantages import group_advantages, group_statistics, overlong_penalty
from rlkd_nemo.errors import ConfigError, NonFiniteError, ShapeError

NAN = float("nan")


def advantages(rewards, std="population", groups=None, valid=None):
    count = len(rewards)
    return group_advantages(
        torch.tensor(rewards, dtype=torch.float64),
        torch.zeros(count, dtype=torch.int64) if groups is None else torch.tensor(groups),
        torch.ones(count, dtype=torch.bool) if valid is None else torch.tensor(valid),
        std,
    ).tolist()


@pytest.mark.parametrize(
    ("rewards", "std", "expected"),
    [
        ([1, 0, 0, 0], "population", [1.732050807569] + [-0.577350269190] * 3),
        ([1, 0, 0, 0], "sample", [1.499700059988] + [-0.499900019996] * 3),
        ([1, 0, 0, 0], "none", [0.75, -0.25, -0.25, -0.25]),
        ([1, 0, 0, 1], "population", [1, -1, -1, 1]),
        ([1, 0, 0, 1], "sample", [0.865875429761, -0.865875429761, -0.865875429761, 0.865875429761]),
        ([1, 0, 0, 1], "none", [0.5, -0.5, -0.5, 0.5]),
        ([40.625, 32.5, 25.25, 2.5], "population", [1.084979657408, 0.512779432406, 0.002200770096, -1.599959859910]),
    ],
)
def test_vectors(rewards, std, expected):
    assert advantages(rewards, std) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("std", ["population", "sample", "none"])
@pytest.mark.parametrize("reward", [0.0, 0.1, 0.7, 1e6 / 3])
def test_equal_rewards_give_exactly_nothing(std, reward):
    assert advantages([reward] * 3, std) == [0.0, 0.0, 0.0]


def test_groups_are_apart_in_any_order():
    found = advantages([1, 10, 0, 30, 0, 0], groups=[5, 2, 5, 2, 5, 5])
    assert found == pytest.approx([1.732050807569, -1, -0.577350269190, 1, -0.577350269190, -0.577350269190], abs=1e-9)


@pytest.mark.parametrize("std", ["population", "sample", "none"])
def test_an_invalid_row_leaves_statistics_and_gets_nothing(std):
    # Without the failed row the group is (1, 0, 0, 0); with it as a 0 the mean would be 1/5.
    found = advantages([1, NAN, 0, 0, 0], std, valid=[True, False, True, True, True])
    expected = advantages([1, 0, 0, 0], std)
    assert found[1] == 0.0
    assert found[:1] + found[2:] == pytest.approx(expected, abs=1e-12)


def test_fewer_than_two_valid_rows_give_no_gradient():
    assert advantages([5, 1, NAN], groups=[0, 1, 1], valid=[True, True, False], std="none") == [0.0, 0.0, 0.0]
    assert advantages([NAN, NAN], valid=[False, False]) == [0.0, 0.0]
    assert advantages([]) == []


def test_statistics():
    # group 0: two of equal reward; 1: one valid; 2: spread; 3: none valid
    rewards = torch.tensor([1, 1, 2, NAN, 0, 1, NAN], dtype=torch.float64)
    groups = torch.tensor([0, 0, 1, 1, 2, 2, 3])
    found = group_statistics(rewards, groups, ~rewards.isnan())
    assert (found.groups, found.too_few, found.zero_variance) == (4, 2, 1)
    assert found.zero_variance_fraction == 0.5
    assert group_statistics(rewards[2:4], groups[2:4], ~rewards[2:4].isnan()).zero_variance_fraction is None


def test_a_valid_reward_must_be_finite():
    with pytest.raises(NonFiniteError, match=r"rows \[1\]"):
        advantages([1, NAN])


def test_wrong_arguments():
    with pytest.raises(ConfigError, match="rlkd.advantage.std='unbiased'.*population, sample, none"):
        advantages([1, 0], "unbiased")
    with pytest.raises(ShapeError):
        advantages([1, 0], groups=[0])


def test_overlong_penalty():
    lengths = (100, 16_384, 18_432, 20_480, 20_481)
    assert [overlong_penalty(length, 20_480, 4_096) for length in lengths] == [0, 0, -0.5, -1, -1]
    assert [overlong_penalty(length, 8, 0) for length in (8, 9)] == [0, -1]
    with pytest.raises(ConfigError, match="rlkd.overlong.buffer_tokens=9"):
        overlong_penalty(1, 8, 9)
