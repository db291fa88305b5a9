"""DAPO's dynamic sampling: flat groups give way to usable ones, whole, once each, and no failure disappears."""

import pytest

from rlkd_nemo.config.objectives import GRPO
from rlkd_nemo.config.schema import Config, DynamicSampling, Rlkd
from rlkd_nemo.errors import FailureBudgetError
from rlkd_nemo.training.fit import RLKDTrainer
from rlkd_nemo.types import Component, Failure, Problem, Rollout, Score


class Numbered:
    """Problems p0, p1, ... in order."""

    def generate(self, split, seed, difficulty, n, start=0):
        return [Problem(f"p{start + i}", "", "") for i in range(n)]


class Echo:
    """Two responses of three tokens a problem."""

    def generate(self, problems, group_size, *, stream, temperature, max_new_tokens):
        return [
            Rollout(problem, group, sample, [1], [2, 3, 4], [-1.0] * 3, "", False, 0, 1.0)
            for group, problem in enumerate(problems)
            for sample in range(group_size)
        ]


class FlatFor:
    """Rewards 0 and 1 in a group, but 1 and 1 for the problems named; nothing at all for those that fail."""

    def __init__(self, flat, failing=()):
        self.flat, self.failing = flat, failing

    def score(self, rollouts):
        def one(r):
            if r.problem.id in self.failing:
                return Score({"outcome": Component(None, Failure.JUDGE_FAILED)}, None)
            value = 1.0 if r.problem.id in self.flat else float(r.sample)
            return Score({"outcome": Component(value)}, value)

        return [one(r) for r in rollouts]


def trainer(scorer, max_failed_fraction=0.0):
    cfg = Config(
        objective=GRPO(),
        rlkd=Rlkd(
            num_prompts=4,
            group_size=2,
            max_failed_fraction=max_failed_fraction,
            dynamic_sampling=DynamicSampling(enabled=True, max_rounds=2),
        ),
    )
    return RLKDTrainer(
        cfg=cfg, objective_name="grpo", objective=GRPO(), task=Numbered(), actor=None, engine=Echo(), scorer=scorer,
        teacher=None, reference=None,
    )  # fmt: skip


@pytest.mark.parametrize("flat", [{"p1", "p3"}, {"p1", "p2"}, {"p0", "p3"}])
def test_a_usable_group_takes_the_place_of_a_flat_one(flat):
    made = trainer(FlatFor(flat))
    rollouts, scores, metrics = made.rollout()
    # p4 and p5 replace the two flat ones, in order; every row once, groups whole and in their places
    fresh = iter(["p4", "p5"])
    wanted = [next(fresh) if f"p{i}" in flat else f"p{i}" for i in range(4)]
    assert [r.problem.id for r in rollouts] == [name for name in wanted for _ in range(2)]
    assert [r.group for r in rollouts] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [r.sample for r in rollouts] == [0, 1] * 4
    assert len({id(r) for r in rollouts}) == 8
    assert [s.reward for s in scores] == [0.0, 1.0] * 4
    assert (metrics["rollout/extra_rounds"], metrics["rollout/flat_groups_left"]) == (1, 0)
    # what was sampled and thrown away counts as well: 6 groups of 2, 3 tokens each
    assert (made.state.rollouts, made.state.rollout_tokens, metrics["rollout/tokens"]) == (12, 36, 36)


def test_what_stays_flat_stays_in_after_the_last_round():
    made = trainer(FlatFor({f"p{i}" for i in range(1, 20)}))
    rollouts, _, metrics = made.rollout()
    assert [r.problem.id for r in rollouts] == ["p0", "p0", "p1", "p1", "p2", "p2", "p3", "p3"]
    assert (metrics["rollout/extra_rounds"], metrics["rollout/flat_groups_left"]) == (2, 3)


def test_a_group_that_the_system_failed_is_counted_before_it_could_be_replaced():
    with pytest.raises(FailureBudgetError, match="2 of 8 rollouts have no reward"):
        trainer(FlatFor(set(), failing={"p2"})).rollout()
