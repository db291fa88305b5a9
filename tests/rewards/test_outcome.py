import pytest

from rlkd_nemo.rewards.outcome import outcome
from rlkd_nemo.types import Component, Failure


def test_right_and_wrong(task, rollout, path):
    assert outcome(task, rollout(path)) == Component(1.0)
    assert outcome(task, rollout(path.replace("<answer>1", "<answer>2"))) == Component(0.0)
    assert outcome(task, rollout("")) == Component(0.0)


def test_truncated_is_zero_and_counted(task, rollout, path):
    assert outcome(task, rollout(path, truncated=True)) == Component(0.0, Failure.TRUNCATED)


def test_a_fault_of_the_task_is_raised(rollout):
    class Broken:
        def verify(self, problem, response):
            raise KeyError("gold")

    with pytest.raises(KeyError):
        outcome(Broken(), rollout())
