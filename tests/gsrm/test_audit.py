"""Probes with known answers, step inflation, and the bounds at which an alarm rings."""

import pytest

from rlkd_nemo.gsrm.audit import ALARMS, probes, step_inflation, verdict
from rlkd_nemo.types import Component, Failure, Problem, Rollout, Score, Step


def rollout(name, text, path):
    return Rollout(Problem(name, f"problem {name}", "1", (path,)), 0, 0, [], [], [], text, False, 0, 1.0)


def score(mine, theirs, matched=0, **more):
    steps = {"student_steps": [Step("s")] * mine, "teacher_steps": [Step("t")] * theirs, "matched": matched, **more}
    return Score({"structure": Component(0.5, detail=steps)}, 0.5)


def test_inflation_is_over_whole_responses_only():
    failed = Score({"structure": Component(None, Failure.TIMEOUT)}, None)
    scores = [score(6, 3), score(2, 1), score(1, 9, student_complete=False), failed, Score({}, 0.0)]
    assert step_inflation(scores) == {"audit/step_inflation": 2.0}
    assert step_inflation([failed]) == {}


def test_probes_are_made_of_the_steps_own_problems():
    rollouts = [rollout("a", "ra1", "A"), rollout("a", "ra2", "A"), rollout("b", "rb", "B"), rollout("c", "", "C")]
    scores = [score(1, 2, 1), score(1, 2), score(2, 2, 2), Score({"structure": Component(0.0)}, 0.0)]
    made = probes(rollouts, scores, 2)
    assert [(p.kind, p.problem, p.response, p.reference) for p in made] == [
        ("same", "problem a", "A", "A"),
        ("other", "problem a", "B", "A"),
        ("same", "problem b", "B", "B"),
        ("other", "problem b", "C", "B"),
        ("swap", "problem a", "A", "ra1"),
        ("swap", "problem a", "A", "ra2"),
    ]
    # same: 2 of 2 and 1 of 2; other: 0 of 2 and failed; swap: 1 as before, 1 instead of 0
    matched = [(2, 2), (0, 2), (1, 2), None, (1, 1), (1, 1)]
    assert verdict(made, matched, scores) == {
        "audit/canary_same": 0.75,
        "audit/canary_other": 0.0,
        "audit/order_swap_disagreement": 0.5,
        "audit/probes_failed": 1.0,
    }


@pytest.mark.parametrize(
    ("metric", "fine", "rings"),
    [("audit/canary_same", 0.75, 0.74), ("audit/canary_other", 0.5, 0.51), ("audit/step_inflation", 1.5, 1.6)],
)
def test_alarms_ring_outside_their_bounds(metric, fine, rings):
    (alarm,) = [alarm for alarm in ALARMS if alarm.metric == metric]
    assert not alarm.rings(fine) and alarm.rings(rings) and str(fine) in alarm.bounds
