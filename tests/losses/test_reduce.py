from __future__ import annotations

import pytest
import torch

from rlkd_nemo.errors import ConfigError, ShapeError
from rlkd_nemo.losses.reduce import token_weights

MASK = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
VALID = torch.tensor([True, True, False])


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("seq_mean", [[1 / 6, 1 / 6, 1 / 6], [1 / 4, 1 / 4, 0], [0, 0, 0]]),  # 1 / (2 rows * length)
        ("token_mean", [[1 / 5, 1 / 5, 1 / 5], [1 / 5, 1 / 5, 0], [0, 0, 0]]),
        ("constant", [[1 / 8, 1 / 8, 1 / 8], [1 / 8, 1 / 8, 0], [0, 0, 0]]),  # 1 / (2 rows * 4 tokens)
    ],
)
def test_weights_by_hand(how, expected):
    weights = token_weights(MASK, VALID, how, max_new_tokens=4)
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("how", ["seq_mean", "token_mean", "constant"])
def test_a_part_with_the_update_s_counts_gets_the_update_s_weights(how):
    whole = token_weights(MASK, VALID, how, max_new_tokens=4)
    for part in (slice(0, 1), slice(1, 3)):
        weights = token_weights(MASK[part], VALID[part], how, num_sequences=2, num_tokens=5, max_new_tokens=4)
        assert torch.equal(weights, whole[part])


def test_a_valid_row_without_tokens_counts_as_a_sequence():
    mask = torch.tensor([[True, True], [False, False]])
    weights = token_weights(mask, torch.tensor([True, True]), "seq_mean")
    assert weights.tolist() == [[0.25, 0.25], [0.0, 0.0]]  # N = 2, |y_1| = 2


@pytest.mark.parametrize("how", ["seq_mean", "token_mean", "constant"])
def test_nothing_valid_is_zero_and_finite(how):
    assert token_weights(MASK, torch.zeros(3, dtype=torch.bool), how, max_new_tokens=4).eq(0).all()
    assert token_weights(MASK[:0], VALID[:0], how, max_new_tokens=4).shape == (0, 3)


def test_wrong_arguments_name_the_key():
    with pytest.raises(ConfigError, match="objective.aggregation='mean'.*seq_mean, token_mean, constant"):
        token_weights(MASK, VALID, "mean")
    with pytest.raises(ConfigError, match="max_new_tokens"):
        token_weights(MASK, VALID, "constant")
    with pytest.raises(ShapeError, match="wanted torch.bool"):
        token_weights(MASK.float(), VALID, "seq_mean")
