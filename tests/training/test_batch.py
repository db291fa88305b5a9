"""Ragged sequences to micro-batches: every row once, every token at the position that predicts it."""

import pytest
import torch

from rlkd_nemo.errors import ShapeError
from rlkd_nemo.training.batch import SequenceBatch, collate, context_share
from rlkd_nemo.training.partition import MicroBatchSize


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


@pytest.mark.parametrize("packed", [False, True])
def test_no_rows_make_an_idle_micro_batch(packed):
    idle = collate(batch(), [], 0, MicroBatchSize(2, packed=packed, total_multiple=4))
    assert idle.rows == [] and idle.tokens.tolist() == [[0, 0, 0, 0]]
    assert float(idle.weights.abs().sum()) == 0 and not idle.mask.any()
    assert idle.targets.numel() == idle.positions.numel() == idle.held.numel() == 0
    assert {name: tuple(value.shape) for name, value in idle.fields.items()} == {"old": (1, 1)}
    assert idle.segments == ([4] if packed else None)


def test_a_micro_batch_is_padded_to_its_own_longest_only():
    assert collate(batch(), [2], 0).tokens.shape == (1, 3)


def test_wrong_lengths_are_named():
    with pytest.raises(ShapeError, match="field 'old'"):
        SequenceBatch([[1]], [[2, 3]], [], {"old": [torch.zeros(1)]})
    with pytest.raises(ShapeError, match="1 of them empty"):
        SequenceBatch([[1]], [[]])
    with pytest.raises(ShapeError, match="1 prompts, 1 of them empty"):
        SequenceBatch([[]], [[1]])  # nothing would predict the first token


def test_rows_are_padded_to_a_multiple():
    got = collate(batch(), [0, 2], 0, MicroBatchSize(2, total_multiple=4))
    assert got.tokens.tolist() == [[1, 2, 3, 7, 8, 0, 0, 0], [5, 6, 12, 0, 0, 0, 0, 0]]
    assert got.positions.tolist() == [2, 3, 9]  # row 1 starts at 8
    assert collate(batch(), [1], 0, MicroBatchSize(2, total_multiple=4)).tokens.shape == (1, 4)  # a multiple already
    assert collate(batch(), [], 0, MicroBatchSize(2, total_multiple=4)).tokens.shape[1] % 4 == 0


def test_packing_by_hand():
    got = collate(batch(), [0, 1], 0, MicroBatchSize(2, packed=True))
    assert got.tokens.tolist() == [[1, 2, 3, 7, 8, 4, 9, 10, 11]] and got.segments == [5, 4]
    assert got.targets.tolist() == [7, 8, 9, 10, 11]
    assert got.positions.tolist() == [2, 3, 5, 6, 7]
    # per-token tensors stay [rows, tokens], as when padded
    padded = collate(batch(), [0, 1], 0)
    for name in ("mask", "weights", "held"):
        assert getattr(got, name).equal(getattr(padded, name))
    assert got.fields["old"].equal(padded.fields["old"]) and padded.segments is None


def test_packed_rows_are_rounded_up():
    size = MicroBatchSize(2, packed=True, multiple=4, total_multiple=16)
    got = collate(batch(), [1, 2], 0, size)
    # 4 and 3 tokens take 4 each; the last row takes what the sum lacks of 16
    assert got.tokens.tolist() == [[4, 9, 10, 11, 5, 6, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0]] and got.segments == [4, 12]
    assert got.positions.tolist() == [0, 1, 2, 5]


def test_context_parallel_chunks_by_hand():
    # 8 tokens in 2 x 2 chunks of 2: the first rank has the first and the last
    assert context_share(8, 0, 2).tolist() == [0, 1, 6, 7]
    assert context_share(8, 1, 2).tolist() == [2, 3, 4, 5]
    assert context_share(5, 0, 1).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [2, 3])
def test_each_response_token_is_one_context_parallel_rank_s(size, packed):
    how = MicroBatchSize(3, packed=packed, multiple=2 * size, total_multiple=4 * size)
    whole = collate(batch(), [0, 1, 2], 0, how)
    parts = [collate(batch(), [0, 1, 2], 0, how, cp_rank=rank, cp_size=size) for rank in range(size)]
    assert sum(part.mask.int() for part in parts).equal(whole.mask.int())
    assert sum(part.held.int() for part in parts).tolist() == [1] * 6
    torch.testing.assert_close(sum(part.weights for part in parts), whole.weights)
    torch.testing.assert_close(sum(part.fields["old"] for part in parts), whole.fields["old"])
    predicting = {7: 3, 8: 7, 9: 4, 10: 9, 11: 10, 12: 6}  # each response token and the token before it
    for part in parts:
        assert part.tokens.numel() * size == whole.tokens.numel() and part.segments == whole.segments
        flat = part.tokens.flatten()
        assert [predicting[t] for t in part.targets.tolist()] == flat[part.positions].tolist()
        assert part.targets.numel() == int(part.mask.sum())
