"""Ragged sequences to micro-batches: every row once, every token at the position that predicts it."""

import pytest
import torch

from rlkd_nemo.errors import ShapeError
from rlkd_nemo.training.batch import SequenceBatch, collate, micro_batches, share


def batch():
    return SequenceBatch(
        prompts=[[1, 2, 3], [4], [5, 6]],
        responses=[[7, 8], [9, 10, 11], [12]],
        weights=[torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.4, 0.5]), torch.tensor([0.6])],
        fields={"old": [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0, 5.0]), torch.tensor([6.0])]},
    )


def test_collate_by_hand():
    got = collate(batch(), [0, 1], pad_id=0)
    assert got.tokens.tolist() == [[1, 2, 3, 7, 8], [4, 9, 10, 11, 0]]
    assert got.mask.tolist() == [[True, True, False], [True, True, True]]
    # 7 is predicted by the state of 3 (position 2), 8 by that of 7; row 1 starts at 5: 9 by 4, then 9 and 10
    assert got.targets.tolist() == [7, 8, 9, 10, 11]
    assert got.positions.tolist() == [2, 3, 5, 6, 7]
    assert got.weights.tolist() == [pytest.approx([0.1, 0.2, 0.0]), pytest.approx([0.3, 0.4, 0.5])]
    assert got.fields["old"].tolist() == [[1.0, 2.0, 0.0], [3.0, 4.0, 5.0]]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_row_goes_to_one_rank_and_the_work_is_even(size):
    lengths = [50, 3, 40, 8, 30, 9, 20, 10]
    shares = [share(lengths, rank, size) for rank in range(size)]
    assert sorted(sum(shares, [])) == list(range(8))
    work = [sum(lengths[i] for i in rows) for rows in shares]
    assert max(work) - min(work) <= max(lengths)


def test_ranks_with_less_to_do_make_idle_micro_batches():
    made = list(micro_batches(batch(), [2], 2, 0, number=3))
    assert [mb.rows for mb in made] == [[2], [], []]
    assert all(float(mb.weights.abs().sum()) == 0 and not mb.mask.any() and mb.targets.numel() == 0 for mb in made[1:])


def test_similar_lengths_share_a_micro_batch():
    made = list(micro_batches(batch(), [0, 1, 2], 2, 0))
    assert [mb.rows for mb in made] == [[0, 1], [2]]
    assert made[1].tokens.shape == (1, 3)  # padded to its own longest only


def test_wrong_lengths_are_named():
    with pytest.raises(ShapeError, match="field 'old'"):
        SequenceBatch([[1]], [[2, 3]], [], {"old": [torch.zeros(1)]})
    with pytest.raises(ShapeError, match="1 of them empty"):
        SequenceBatch([[1]], [[]])


def test_rows_are_padded_to_a_multiple():
    got = collate(batch(), [0, 2], pad_id=0, multiple=4)
    assert got.tokens.tolist() == [[1, 2, 3, 7, 8, 0, 0, 0], [5, 6, 12, 0, 0, 0, 0, 0]]
    assert got.positions.tolist() == [2, 3, 9]  # row 1 starts at 8
    assert collate(batch(), [1], 0, multiple=4).tokens.shape == (1, 4)  # a multiple already
    assert {mb.tokens.shape[1] % 4 for mb in micro_batches(batch(), [2], 2, 0, number=3, multiple=4)} == {0}
