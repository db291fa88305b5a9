"""Served rewards against rewards by rule: what counts as agreeing, and what a failure is."""

import json

import pytest

from rlkd_nemo import tasks
from rlkd_nemo.config.schema import ExpressionsTask, Gsrm
from rlkd_nemo.errors import InputError
from rlkd_nemo.report import audit
from rlkd_nemo.rewards.agreement import agreement
from rlkd_nemo.types import Component, Failure, Rollout, Score


@pytest.fixture(scope="module")
def task():
    return tasks.build(ExpressionsTask(style="prose"))


@pytest.fixture(scope="module")
def problems(task):
    return {problem.id: problem for problem in task.generate("train", 0, "3", 4)}


def record(problem, text, value):
    """A line as a run writes it."""
    part = Component(None, Failure.TIMEOUT) if value is None else Component(value)
    rollout = Rollout(problem, 0, 0, [1], [2], [-0.1], text, False, 0, 1.0)
    return json.loads(json.dumps(audit.record(1, rollout, Score({"structure": part}, value), 0.0)))


def test_a_share_of_all_rollouts(task, problems):
    one, two, three, four = problems.values()
    records = [
        record(one, one.teacher_paths[0], 1.0),  # agrees
        record(two, "nothing that is a step</think>", 0.0),  # agrees
        record(three, three.teacher_paths[0], 0.5),  # by rule 1
        record(four, four.teacher_paths[0], None),  # failed: does not agree
    ]
    found = agreement(records, problems, task, Gsrm())
    assert (found.rollouts, found.failed, found.agreement, found.distinct) == (4, 1, 0.5, 2)
    assert found.mean_gap == pytest.approx(0.5 / 3)
    assert (found.mean_service, found.mean_rule) == (pytest.approx(0.5), 0.75)
    assert found.as_dict()["agreement"] == 0.5


def test_the_runs_own_rules_count(task, problems):
    one = next(iter(problems.values()))
    records = [record(one, one.teacher_paths[0], 3.0)]
    assert agreement(records, problems, task, Gsrm(norm="none")).agreement == 1.0
    assert agreement(records, problems, task, Gsrm()).agreement == 0.0


def test_what_cannot_be_compared(task, problems):
    with pytest.raises(InputError, match="holds no rollout"):
        agreement([], problems, task, Gsrm())
    one = next(iter(problems.values()))
    with pytest.raises(InputError, match=one.id):
        agreement([record(one, "", 0.0)], {}, task, Gsrm())
