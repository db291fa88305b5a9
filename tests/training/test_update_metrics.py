"""The metrics of a step with several updates are means over all of its tokens."""

import pytest
import torch

from rlkd_nemo.config.objectives import GRPO
from rlkd_nemo.config.schema import Config, Rlkd
from rlkd_nemo.losses.metrics import Metric, measured
from rlkd_nemo.training.fit import RLKDTrainer
from rlkd_nemo.types import Component, Problem, Rollout, Score


class Reports:
    """An actor that finds kl 1, 2, ... in its updates, on every token, and a loss ten times as large."""

    def __init__(self):
        self.seen = []

    def prepare_for_training(self):
        pass

    finish_training = prepare_for_training

    def update(self, batch, objective, *, temperature, tally):
        kl = float(len(self.seen) + 1)
        self.seen.append(sum(map(len, batch.responses)))
        found = torch.full((self.seen[-1],), kl)
        where = torch.ones_like(found, dtype=torch.bool)
        tally.add(measured({"kl": Metric.mean(found, where), "ratio_max": Metric.max(found, where)}))
        return {"kl": kl, "ratio_max": kl, "loss": 10 * kl, "grad_norm": kl, "learning_rate": 0.5}


@pytest.mark.parametrize("epochs", [1, 2])
def test_longer_updates_weigh_more(epochs):
    cfg = Config(objective=GRPO(), rlkd=Rlkd(num_prompts=2, group_size=2, updates_per_batch=2, epochs=epochs))
    actor = Reports()
    trainer = RLKDTrainer(
        cfg=cfg, objective_name="grpo", objective=GRPO(), task=None, actor=actor, engine=None, scorer=None, teacher=None,
        reference=None,
    )  # fmt: skip
    lengths = [1, 1, 3, 3]  # two updates of a group each, of 2 and 6 tokens
    rollouts = [
        Rollout(Problem("p", "", ""), row // 2, row % 2, [1], [2] * n, [-1.0] * n, "", False, 0, 1.0)
        for row, n in enumerate(lengths)
    ]
    experience = trainer.advantage(rollouts, [Score({"outcome": Component(r)}, r) for r in (0.0, 1.0, 1.0, 0.0)])
    experience.old_log_probs = [torch.zeros(n) for n in lengths]
    metrics = trainer.update(experience)
    assert actor.seen == [2, 6] * epochs
    # (2 x 1 + 6 x 2) / 8; with two epochs (2 x 1 + 6 x 2 + 2 x 3 + 6 x 4) / 16: means of the updates' means are less
    assert metrics["loss/kl"] == {1: 14 / 8, 2: 44 / 16}[epochs]
    assert metrics["loss/ratio_max"] == 2 * epochs
    # each update has one of these, however long its responses
    mean = {1: 1.5, 2: 2.5}[epochs]
    assert (metrics["loss/total"], metrics["loss/grad_norm"], metrics["loss/learning_rate"]) == (10 * mean, mean, 0.5)
    assert metrics["loss/updates"] == 2 * epochs
