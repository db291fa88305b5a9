"""Rank script: 20 steps of the real loop at tensor parallel 2, with a recorded sampler in place of sampling.

The sampler is the only fake: it hands out worked examples of the task, some wrong, with the actor's own log-probs.
Sampling from logits would turn a last-digit difference between processors into another rollout; everything after it
(scores, advantages, TRRD, Megatron's gradients and optimizer) is the real thing.

Usage: golden_ranks.py OUT.json
"""

import json
import sys
import tempfile
from pathlib import Path

from rlkd_nemo.engine.ranks import close_ranks

from rlkd_nemo import build
from rlkd_nemo.config.load import load
from rlkd_nemo.engine.model.build import build_model
from rlkd_nemo.engine.teacher import FrozenModel
from rlkd_nemo.training.fit import RLKDTrainer
from rlkd_nemo.types import Rollout


class RecordedSampler:
    """Worked examples, right and wrong in turn, as rollouts of the student."""

    def __init__(self, task, tokens, actor):
        self.task, self.tokens, self.actor = task, tokens, actor

    def refit(self, version):
        self.version = version

    def generate(self, problems, group_size, *, stream, temperature, max_new_tokens):
        rows = []
        for group, problem in enumerate(problems):
            for sample in range(group_size):
                text = problem.teacher_paths[0]
                if sample % 2:  # the last digit of the answer and of the second step are off by one
                    text = (
                        text.replace("=1;", "=2;").replace("<answer>1", "<answer>2").replace("<answer>0", "<answer>3")
                    )
                ids = self.tokens.encode(text) + [self.tokens.eos_id]
                prompt = self.tokens.encode(problem.prompt)
                rows.append(Rollout(problem, group, sample, prompt, ids, [], text, False, self.version, temperature))
        log_probs, _ = self.actor.get_inference_log_probs(
            [r.prompt_ids for r in rows], [r.response_ids for r in rows], temperature=temperature
        )
        for row, values in zip(rows, log_probs):
            row.log_probs = values.tolist()
        return rows


def main(out):
    cfg = load(
        "rlkd_demo",
        [
            "model.restore_from_path=null", "model.optim.lr=1e-3", "trainer.rlkd.max_steps=20",
            "trainer.rlkd.val_check_interval=0", "trainer.rlkd.save_interval=0", "rlkd.num_prompts=4",
            "rlkd.group_size=4", "model.micro_batch_size=8",
        ],
    )  # fmt: skip
    ranks = build.build_ranks(cfg)
    task, tokens = build.build_task(cfg)
    actor = build.build_actor(cfg, ranks, tokens, total_updates=40, gradient_clip_val=1.0)
    teacher = build_model(cfg.model, tokens.vocab_size, ranks)
    curve, of_updates, plain_update = [], [], actor.update

    def update(*args, **how):
        of_updates.append(plain_update(*args, **how))
        return of_updates[-1]

    def on_step(step, metrics):
        names = ("loss/total", "loss/grad_norm", "reward/total", "reward/structure")
        # The record is of the updates themselves; the loop's own figure joins their tokens (tests/training).
        kl = sum(one["kl_teacher"] for one in of_updates) / len(of_updates)
        curve.append({**{name: metrics[name] for name in names}, "loss/kl_teacher": kl})
        of_updates.clear()

    actor.update = update
    trainer = RLKDTrainer(
        cfg=cfg,
        objective_name="trrd",
        objective=cfg.objective,
        task=task,
        actor=actor,
        engine=RecordedSampler(task, tokens, actor),
        scorer=build.build_scorer(cfg, task, Path(tempfile.mkdtemp())),
        teacher=FrozenModel(teacher, ranks, temperature=1.0, pad_id=tokens.pad_id),
        reference=None,
        on_step=on_step,
        save=lambda step, metrics, state: None,
    )
    assert trainer.fit()
    if ranks.is_main:
        out.write_text(json.dumps(curve, indent=1))
    close_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
