"""Between rollouts and weights: failures leave the group, whole groups make an update, tokens get their weight."""

import pytest
import torch

from rlkd_nemo.config.objectives import GRPO, KDRL, TRRD
from rlkd_nemo.config.schema import Gate, Overlong
from rlkd_nemo.errors import FailureBudgetError, GateError
from rlkd_nemo.training import step as steps
from rlkd_nemo.training.gate import sampler_gate, teacher_gate
from rlkd_nemo.types import Component, Failure, Problem, Rollout, Score


def rollout(group, sample=0, length=2, truncated=False):
    ids = list(range(5, 5 + length))
    return Rollout(Problem(f"p{group}", "", ""), group, sample, [1], ids, [-1.0] * length, "", truncated, 0, 1.0)


def score(value, failure=None):
    part = Component(value, failure)
    return Score({"outcome": part}, value)


def experience(rewards, per_group=2, overlong=None, truncated=()):
    rollouts = [rollout(i // per_group, i % per_group, 2, i in truncated) for i in range(len(rewards))]
    scores = [score(r, Failure.TIMEOUT if r is None else None) for r in rewards]
    return steps.advantage(
        rollouts, scores, std="population", overlong=overlong or Overlong(), max_new_tokens=4, scale=3.0
    )


def test_a_failed_row_leaves_mean_deviation_and_update():
    got = experience([1.0, 0.0, None, 1.0], per_group=4)
    # among the valid (1, 0, 1): mean 2/3, deviation sqrt(2)/3
    assert got.advantages.tolist() == pytest.approx([0.70710678, -1.41421356, 0.0, 0.70710678])
    assert steps.updates(got, 1) == [[0, 1, 3]]


def test_a_group_failed_by_the_system_gives_nothing():
    got = experience([None, None, 1.0, 0.0])
    assert steps.updates(got, 1) == [[2, 3]]
    assert got.advantages.tolist() == [0, 0, 1, -1]
    assert steps.reward_metrics(got)["rollout/unusable_groups"] == 1


def test_too_many_failures_stop_the_step_and_name_themselves():
    scores = [score(None, Failure.JUDGE_FAILED), score(1.0)]
    steps.refuse_too_many_failures(scores, 0.5)
    with pytest.raises(FailureBudgetError, match=r"1 of 2 rollouts have no reward \(outcome: judge_failed x 1\)"):
        steps.refuse_too_many_failures(scores, 0.05)


def test_updates_split_whole_groups():
    got = experience([1.0, 0.0] * 4)
    assert steps.updates(got, 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_overlong_mask_and_penalty():
    masked = experience([1.0, 0.0, 1.0, 0.0], overlong=Overlong(mode="mask"), truncated={0})
    assert masked.valid.tolist() == [False, True, True, True]
    # length 2 of 4 with a buffer of 4: half the buffer used, -0.5, times the outcome's weight 3
    soft = experience([1.0, 0.0], overlong=Overlong(mode="soft", buffer_tokens=4))
    assert soft.rewards.tolist() == [-0.5, -1.5]


def test_update_batch_carries_weights_and_the_teacher_mask():
    got = experience([1.0, 0.0])
    got.old_log_probs = got.teacher_log_probs = [torch.zeros(2)] * 2
    batch = steps.update_batch(got, [0, 1], TRRD(), max_new_tokens=4, drop_teacher_at=6)
    assert [w.tolist() for w in batch.weights] == [[0.25, 0.25]] * 2  # 1 / (2 rows x 2 tokens)
    assert [m.tolist() for m in batch.fields["teacher_mask"]] == [
        [1.0, 0.0]
    ] * 2  # token 6 ends the student's text only
    assert [a.tolist() for a in batch.fields["advantages"]] == [[1.0, 1.0], [-1.0, -1.0]]


def test_kdrl_leaves_correct_responses_to_the_reward():
    got = experience([1.0, 0.0])
    got.old_log_probs = got.teacher_log_probs = [torch.zeros(2)] * 2
    batch = steps.update_batch(got, [0, 1], KDRL(kd_mask="response"), max_new_tokens=4, drop_teacher_at=None)
    assert [m.tolist() for m in batch.fields["teacher_mask"]] == [[0.0, 0.0], [1.0, 1.0]]


def test_gates():
    assert teacher_gate("grpo", GRPO(), Gate()) is None
    assert teacher_gate("trrd", TRRD(), Gate()) > 1e-3
    with pytest.raises(GateError, match="would train without its teacher"):
        teacher_gate("kdrl", KDRL(beta=1e-9), Gate())
    rows = [rollout(0)]
    assert sampler_gate(rows, [torch.tensor([-1.0, -1.001])], Gate())["rollout/log_prob_gap_max"] == pytest.approx(
        1e-3, rel=1e-3
    )
    with pytest.raises(GateError, match="response token 1: sampler -1.0000, trainer -3.0000"):
        sampler_gate(rows, [torch.tensor([-1.0, -3.0])], Gate())
    with pytest.raises(GateError):  # a NaN is no agreement
        sampler_gate(rows, [torch.tensor([-1.0, float("nan")])], Gate())


def test_fp8_has_a_bound_of_its_own_between_sampler_and_trainer():
    rows, off = [rollout(0)], [torch.tensor([-1.05, -1.05])]  # 0.05 nats, as FP8 against bf16
    with pytest.raises(GateError, match="gate.max_log_prob_gap=0.002"):
        sampler_gate(rows, off, Gate())
    assert sampler_gate(rows, off, Gate(), fp8=True)["rollout/log_prob_gap_mean"] == pytest.approx(0.05)
    with pytest.raises(GateError, match="gate.max_log_prob_gap_fp8=0.1"):
        sampler_gate(rows, [torch.tensor([-1.3, -1.3])], Gate(), fp8=True)
