"""Rows to ranks and micro-batches: every row once, within the budget, as many on each rank, evenly."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkd_nemo.errors import ConfigError
from rlkd_nemo.training.partition import MicroBatchSize, plan, round_up, share

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=40)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_row_goes_to_one_rank_and_the_work_is_even(size):
    lengths = [50, 3, 40, 8, 30, 9, 20, 10]
    shares = [share(lengths, rank, size) for rank in range(size)]
    assert sorted(sum(shares, [])) == list(range(8))
    work = [sum(lengths[i] for i in rows) for rows in shares]
    assert max(work) - min(work) <= max(lengths)


def test_counting_rows_by_hand():
    # similar lengths share a micro-batch; a rank with less to do gets idle ones
    assert plan([5, 4, 3], MicroBatchSize(2), 1) == [[[0, 1], [2]]]
    assert plan([5, 4, 3], MicroBatchSize(1), 2) == [[[0], []], [[1], [2]]]


def test_counting_tokens_by_hand():
    # longest first to the rank with least: 9 | 6 4, then 3 to the first (9 < 10)
    lengths = [3, 9, 4, 6]
    # padded: 9 and 3 would take 2 x 9 = 18, 6 and 4 take 2 x 6 = 12
    assert plan(lengths, MicroBatchSize(1, tokens=12), 2) == [[[1], [0]], [[3, 2], []]]
    # packed: 9 + 3 = 12
    assert plan(lengths, MicroBatchSize(1, tokens=12, packed=True), 2) == [[[1, 0]], [[3, 2]]]


def taken(rows, lengths, size):
    padded = [round_up(lengths[i], size.multiple) for i in rows]
    if size.packed:
        return round_up(sum(padded), size.total_multiple)
    return len(rows) * round_up(max(padded), size.total_multiple)


@settings(deadline=None)
@given(
    LENGTHS, st.integers(1, 5), st.integers(48, 200), st.booleans(), st.sampled_from([(1, 1), (1, 4), (4, 4), (4, 8)])
)
def test_a_token_budget(lengths, ranks, budget, packed, multiples):
    size = MicroBatchSize(1, tokens=budget, packed=packed, multiple=multiples[0], total_multiple=multiples[1])
    made = plan(lengths, size, ranks)
    assert sorted(row for parts in made for rows in parts for row in rows) == list(range(len(lengths)))
    assert len({len(parts) for parts in made}) == 1 and len(made) == ranks and made[0]
    for parts in made:
        assert all(taken(rows, lengths, size) <= budget for rows in parts if rows)
        # no two neighbours would have fitted into one
        for a, b in itertools.pairwise(parts):
            assert not b or taken(a + b[:1], lengths, size) > budget
    work = [sum(round_up(lengths[row], size.multiple) for rows in parts for row in rows) for parts in made]
    assert max(work) - min(work) <= round_up(max(lengths), size.multiple)
    assert made == plan(lengths, size, ranks)


def test_fewer_tokens_than_when_rows_are_counted():
    # one long row among short ones: counted by rows, fours would be padded to 100 once and hold 16 tokens otherwise
    lengths = [100] + [4] * 60
    parts = plan(lengths, MicroBatchSize(1, tokens=100), 1)[0]
    assert [len(rows) for rows in parts] == [1, 25, 25, 10]


def test_a_row_over_the_budget_is_named():
    with pytest.raises(ConfigError, match=r"row 1 has 33 tokens, more than the 32 that model\.micro_batch_tokens"):
        plan([3, 33], MicroBatchSize(1, tokens=32), 2)
    with pytest.raises(ConfigError, match=r"row 0 has 31 tokens \(32 with its padding\).*28"):
        plan([31], MicroBatchSize(1, tokens=31, multiple=4, total_multiple=4), 2)
