"""Rank script: faults inside the loop on two ranks. Prints one line a fault.

Usage: faults_ranks.py DIRECTORY START TEACHER (checkpoints)
"""

import sys
from pathlib import Path

from rlkd_nemo.engine.ranks import close_ranks

import torch

from rlkd_nemo import build
from rlkd_nemo.config.load import load
from rlkd_nemo.engine.state.checkpoint import latest, load_checkpoint
from rlkd_nemo.errors import FailureBudgetError, NonFiniteError
from rlkd_nemo.losses.batch import TokenLoss
from rlkd_nemo.run_directory import RunDirectory
from rlkd_nemo.training import fit, step
from rlkd_nemo.types import Component, Failure, Score
from tests.integration.conftest import SMALL


class FailsOneGroup:
    """A scorer whose judge is down for every rollout of group 1."""

    def __init__(self, scorer):
        self.scorer = scorer

    def score(self, rollouts):
        scores = self.scorer.score(rollouts)
        down = Component(None, Failure.JUDGE_FAILED)
        return [
            Score({**s.components, "structure": down}, None) if r.group == 1 else s for r, s in zip(rollouts, scores)
        ]


def trainer(directory, start, teacher, ranks, *overrides, scorer=lambda s: s):
    cfg = load(
        "rlkd_demo",
        [
            *SMALL, *overrides, f"model.restore_from_path={start}", f"teacher.restore_from_path={teacher}",
            f"exp_manager.exp_dir={directory}", "trainer.rlkd.max_steps=3", "trainer.rlkd.save_interval=1",
            "trainer.rlkd.val_check_interval=0", "model.micro_batch_size=4", "rlkd.updates_per_batch=1",
        ],
    )  # fmt: skip
    task, tokens = build.build_task(cfg)
    actor = build.build_actor(cfg, ranks, tokens, total_updates=3, gradient_clip_val=1.0)
    load_checkpoint(start, actor, weights_only=True)
    run = RunDirectory(directory, cfg, ranks, tokens, total_steps=3, description="faults")
    run.open(0)
    made = fit.RLKDTrainer(
        cfg=cfg, objective_name="trrd", objective=cfg.objective, task=task, actor=actor,
        engine=build.build_sampler(cfg, actor.bare_model, ranks, tokens),
        scorer=scorer(build.build_scorer(cfg, task, directory)),
        teacher=build.build_frozen(cfg, teacher, ranks, tokens), reference=None, on_step=run.on_step,
        save=lambda s, metrics, state: run.save(actor, s, metrics, state),
    )  # fmt: skip
    return made, actor, run


def weights(actor):
    return torch.cat([p.detach().flatten().clone() for p in actor.hidden_model.parameters()])


def non_finite(what, directory, start, teacher, ranks):
    made, actor, run = trainer(directory, start, teacher, ranks)
    plain = step.bind

    def broken(name, settings, at):
        objective = plain(name, settings, at)

        def loss(log_probs, mask, fields):
            good = objective(log_probs, mask, fields)
            if at < 1:
                return good
            if what == "loss":
                return TokenLoss(good.per_token + float("nan"), good.metrics)
            # value 0, slope infinite
            return TokenLoss(good.per_token + (log_probs - log_probs.detach()).sqrt(), good.metrics)

        return loss

    step.bind = broken
    try:
        made.fit()
    except NonFiniteError as error:
        kept = latest(directory / "checkpoints")
        before = weights(actor)
        load_checkpoint(kept, actor)
        same = torch.equal(before, weights(actor))
        if ranks.is_main:
            print(f"{what.upper()}: {error} KEPT {kept.name} WEIGHTS {'same' if same else 'changed'}", flush=True)
    finally:
        step.bind = plain
        run.close()


def main(directory, start, teacher):
    ranks = build.build_ranks(load("rlkd_demo", [*SMALL]))
    non_finite("loss", directory / "loss", start, teacher, ranks)
    non_finite("gradient", directory / "gradient", start, teacher, ranks)

    made, _, run = trainer(
        directory / "allowed", start, teacher, ranks, "rlkd.max_failed_fraction=0.5", scorer=FailsOneGroup
    )
    made.fit()
    run.close()
    if ranks.is_main:
        print("ALLOWED: finished", flush=True)
    made, _, run = trainer(directory / "refused", start, teacher, ranks, scorer=FailsOneGroup)
    try:
        made.fit()
    except FailureBudgetError as error:
        if ranks.is_main:
            print(f"REFUSED: {error}", flush=True)
    run.close()
    close_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
