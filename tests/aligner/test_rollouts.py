import pytest
import torch

from rlkd_nemo.aligner.rollouts import refuse_too_many_failures, response_mask, score_rows, update_share
from rlkd_nemo.config.aligner import AlignerRlkd
from rlkd_nemo.config.objectives import GRPO
from rlkd_nemo.errors import FailureBudgetError, NonFiniteError, ShapeError

NAN = float("nan")


def scored(rewards, groups, *, per_update, is_end=None, settings=None, aggregation="seq_mean"):
    rows = len(rewards)
    mask = response_mask(torch.full((rows,), 2), torch.arange(3, 3 + rows), 2 + rows)
    return score_rows(
        torch.tensor(rewards), torch.tensor(groups), torch.tensor(is_end or [True] * rows), mask,
        per_update=per_update, settings=settings or AlignerRlkd(), objective=GRPO(aggregation=aggregation),
        max_new_tokens=8,
    )  # fmt: skip


def test_the_mask_covers_the_response_and_its_end():
    # Prompt of 2, then 1 and 3 response tokens: column t predicts token t + 1.
    mask = response_mask(torch.tensor([2, 2]), torch.tensor([3, 5]), 6)
    assert mask.int().tolist() == [[0, 1, 0, 0, 0], [0, 1, 1, 1, 0]]
    assert not response_mask(torch.tensor([3]), torch.tensor([3]), 6).any()  # nothing was generated


def test_every_row_belongs_to_one_rank_and_updates_are_whole_groups():
    groups = torch.tensor([3, 1, 1, 3, 2, 0, 0, 2])  # as gathered from two ranks
    shares = [update_share(groups, 4, rank, 2) for rank in range(2)]
    assert sorted(torch.cat(shares).tolist()) == list(range(8))
    for update in range(2):
        rows = torch.cat([share.view(2, 2)[update] for share in shares])
        assert len(set(groups[rows].tolist())) == 2  # two groups of two, none cut
    with pytest.raises(ShapeError, match="8 rollouts in updates of 6"):
        update_share(groups, 6, 0, 2)
    with pytest.raises(ShapeError, match="over 3 data-parallel ranks"):
        update_share(groups, 4, 0, 3)


def test_a_failed_row_leaves_statistics_and_weights():
    out = scored([1.0, 0.0, 0.5, NAN], [0, 0, 1, 1], per_update=4)
    assert out["advantages"][:, 0].tolist() == [1.0, -1.0, 0.0, 0.0]  # a group of one scored row teaches nothing
    assert out["valid"].tolist() == [True, True, True, False]
    # Three scored rows of 1, 2 and 3 tokens: 1/3, 1/6, 1/9 a token.
    assert torch.allclose(out["weights"].sum(1), torch.tensor([1 / 3, 1 / 3, 1 / 3, 0.0]))
    assert not out["mask"][3].any() and not out["weights"][3].any()


def test_a_group_of_failures_and_a_batch_of_failures_have_no_gradient():
    out = scored([1.0, 0.0, NAN, NAN], [0, 0, 1, 1], per_update=2)
    assert out["weights"][:2].sum() == pytest.approx(1.0) and not out["weights"][2:].any()
    assert not scored([NAN] * 4, [0, 0, 1, 1], per_update=4)["weights"].any()


def test_each_update_has_its_own_denominators():
    # token_mean: rows of 1 + 2 tokens in the first update, 3 + 4 in the second.
    weights = scored([1.0, 0.0, 1.0, 0.0], [0, 0, 1, 1], per_update=2, aggregation="token_mean")["weights"]
    assert weights[0, 1] == pytest.approx(1 / 3) and weights[3, 1] == pytest.approx(1 / 7)


def test_unfinished_responses_can_be_left_out():
    settings = AlignerRlkd(mask_unfinished=True)
    out = scored([1.0, 0.0, 3.0], [0, 0, 0], per_update=3, is_end=[True, True, False], settings=settings)
    assert out["advantages"][:, 0].tolist() == [1.0, -1.0, 0.0]


def test_an_infinite_reward_is_refused():
    with pytest.raises(NonFiniteError, match=r"rows \[1\]"):
        scored([1.0, float("inf")], [0, 0], per_update=2)


def test_too_many_failures_stop_the_run():
    refuse_too_many_failures(torch.tensor([1.0, NAN]), 0.5, "key")
    with pytest.raises(FailureBudgetError, match=r"2 of 2 rollouts have no reward; key allows 0.5"):
        refuse_too_many_failures(torch.tensor([NAN, NAN]), 0.5, "key")
