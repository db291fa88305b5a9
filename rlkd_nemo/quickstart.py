"""The demo in one job: make a teacher and a student, distil one into the other, measure on held-out problems."""

from __future__ import annotations

import copy
import logging
import time
from pathlib import Path
from typing import Any

from rlkd_nemo.engine.ranks import Ranks, seed_everything

from rlkd_nemo import build, jobs
from rlkd_nemo.config.schema import Config, Optim, Schedule, Stage
from rlkd_nemo.engine.state.checkpoint import latest
from rlkd_nemo.errors import GateError
from rlkd_nemo.report.page import write_report
from rlkd_nemo.report.summary import read_summary, write_summary
from rlkd_nemo.run_directory import changed_settings
from rlkd_nemo.training.evaluate import Evaluation
from rlkd_nemo.training.exchange import agree

log = logging.getLogger(__name__)


def run(cfg: Config) -> dict[str, Any]:
    """All stages, each skipped if an earlier, interrupted run of the same directory finished it.

    Supervised stages run data parallel, where two cores are fastest; reinforcement learning in the config's layout.
    Returns: the summary, as in summary.json. Raises GateError when no teacher gets good enough.
    """
    started = time.perf_counter()
    directory = Path(cfg.exp_manager.exp_dir)
    ranks = build.build_ranks(_flat(cfg))
    fresh: set[Path | None] = set()
    base, teacher, teacher_evaluation, seeds = _teacher(cfg, ranks, directory, fresh)
    forked = {"base": base, "teacher": teacher}[cfg.demo.student_from]
    student = _stage(
        cfg, ranks, cfg.demo.student, directory / "student", "student", cfg.model.seed, start=forked, fresh=fresh
    )
    before = jobs.evaluate_checkpoint(_flat(cfg), ranks, student, directory)

    rl_started = time.perf_counter()
    rl = copy.deepcopy(cfg)
    rl.model.restore_from_path, rl.teacher.restore_from_path = str(student), str(teacher)
    ranks = build.build_ranks(rl)
    # A finished demo, or one with other settings, is done again; an interrupted one goes on.
    finished = "student_accuracy_after" in read_summary(directory)
    rl.exp_manager.resume_if_exists &= not finished and not changed_settings(directory, rl)
    trainer = jobs.train_rl(rl, ranks)
    rl_seconds = time.perf_counter() - rl_started
    after = jobs.evaluate_sampler(rl, trainer.engine, trainer.scorer, trainer.task)
    summary = {
        "student_accuracy_before": before.accuracy,
        "student_accuracy_after": after.accuracy,
        "teacher_accuracy": teacher_evaluation.accuracy,
        "structure_reward_before": before.structure,
        "structure_reward_after": after.structure,
        "teacher_structure_reward": teacher_evaluation.structure,
        "student_accuracy_before_interval": before.accuracy_interval,
        "student_accuracy_after_interval": after.accuracy_interval,
        "structure_reward_before_interval": before.structure_interval,
        "structure_reward_after_interval": after.structure_interval,
        "rollouts": trainer.state.rollouts,
        "rl_steps": trainer.state.step,
        "seconds_total": time.perf_counter() - started,
        "seconds_rl": rl_seconds,
        "tokens_per_second_rollout": trainer.state.rollout_tokens / max(trainer.state.rollout_seconds, 1e-9),
        "tensor_model_parallel_size": ranks.tp_size,
        "pipeline_model_parallel_size": ranks.pp_size,
        "context_parallel_size": ranks.cp_size,
        "data_parallel_size": ranks.dp_size,
        "objective": trainer.objective_name,
        "seed": cfg.model.seed,
        "teacher_seeds_tried": seeds,
        "stages_made": sorted(path.parent.parent.name for path in fresh if path is not None),
        "test_problems": cfg.demo.test_problems,
        "test_samples": cfg.demo.test_samples,
    }
    if ranks.is_main:
        write_summary(directory, summary)
        write_report(directory, title=f"rlkd_nemo quickstart: {trainer.objective_name}", summary=summary)
        log.info(
            "held-out accuracy %.3f -> %.3f (teacher %.3f), structure reward %.3f -> %.3f, %d rollouts in %.0f s, %.0f s in all",
            before.accuracy,
            after.accuracy,
            teacher_evaluation.accuracy,
            before.structure,
            after.structure,
            trainer.state.rollouts,
            rl_seconds,
            summary["seconds_total"],
        )
    return summary


def _teacher(
    cfg: Config, ranks: Ranks, directory: Path, fresh: set[Path | None]
) -> tuple[Path, Path, Evaluation, list[int]]:
    """Base and teacher; both anew from a derived seed while the teacher is too weak, within the limit."""
    demo = cfg.demo
    seeds: list[int] = []
    began = time.perf_counter()
    for attempt in range(1 + demo.max_teacher_retrains):
        if attempt and agree(time.perf_counter() - began > demo.retrain_within_s, ranks.device):
            log.warning("demo.retrain_within_s=%g has passed: no further teacher is tried", demo.retrain_within_s)
            break
        seed = cfg.model.seed + 1000 * attempt
        seeds.append(seed)
        suffix = f"-{attempt}" if attempt else ""
        base = _stage(cfg, ranks, demo.base, directory / f"base{suffix}", "base", seed, start=None, fresh=fresh)
        teacher = _stage(
            cfg, ranks, demo.teacher, directory / f"teacher{suffix}", "teacher", seed, start=base, fresh=fresh
        )
        evaluation = jobs.evaluate_checkpoint(_flat(cfg), ranks, teacher, directory)
        log.info("teacher of seed %d: accuracy %.3f", seed, evaluation.accuracy)
        if evaluation.accuracy >= demo.min_teacher_accuracy:
            return base, teacher, evaluation, seeds
        log.warning(
            "teacher accuracy %.3f of seed %d is below demo.min_teacher_accuracy=%.2f; a derived seed is next, if any is left",
            evaluation.accuracy,
            seed,
            demo.min_teacher_accuracy,
        )
    raise GateError(
        f"no teacher reached demo.min_teacher_accuracy={demo.min_teacher_accuracy} (last {evaluation.accuracy:.3f}, "
        f"seeds {seeds}); a weak teacher caps its student. Lengthen demo.base.steps or demo.teacher.steps"
    )


def _flat(cfg: Config) -> Config:
    """`cfg` in the layout of the supervised stages: every rank a data-parallel one."""
    flat = copy.deepcopy(cfg)
    flat.model.tensor_model_parallel_size = flat.model.pipeline_model_parallel_size = 1
    flat.model.sequence_parallel = False
    flat.model.virtual_pipeline_model_parallel_size = None
    for budget in ("micro_batch_tokens", "forward_micro_batch_tokens"):  # of each context-parallel rank
        tokens = getattr(flat.model, budget)
        if tokens is not None:
            setattr(flat.model, budget, tokens * flat.model.context_parallel_size)
    flat.model.context_parallel_size = flat.rollout.tensor_model_parallel_size = 1
    return flat


# What a supervised stage reads. Not where its start weights stand: runs may share stages through links.
_READ = (
    "model.num", "model.hidden", "model.ffn", "model.kv", "model.enc", "model.rot", "model.rope", "model.qk", "model.add",
    "model.layer", "model.init", "model.share", "model.make", "model.seed", "model.optim.", "model.tokenizer.", "data.",
    "task.", "trainer.precision", "trainer.sft.",
)  # fmt: skip


def _stage(
    cfg: Config,
    ranks: Ranks,
    stage: Stage,
    directory: Path,
    name: str,
    seed: int,
    *,
    start: Path | None,
    fresh: set[Path | None],
) -> Path:
    """One supervised stage; returns its checkpoint and notes in `fresh` if this process made it."""
    sft = _flat(cfg)
    sft.model.seed = seed
    sft.model.optim = Optim(
        lr=stage.lr,
        weight_decay=0.01,
        betas=[0.9, 0.98],
        sched=Schedule(name=stage.schedule, warmup_steps=min(20, stage.steps - 1), min_lr=0.05 * stage.lr),
    )
    sft.model.restore_from_path = None if start is None else str(start)
    sft.trainer.sft.max_steps = sft.trainer.sft.save_interval = stage.steps
    sft.data.strategies, sft.data.noise, sft.data.num_paths = stage.strategies, stage.noise, stage.num_paths
    sft.data.shuffle_seed = seed
    done = latest(directory / "checkpoints")
    # A stage is used again if nothing that it reads has changed, and what it starts from was used again as well.
    same = done is not None and start not in fresh and not changed_settings(directory, sft, _READ)
    if same and done.name == f"step-{stage.steps:06d}":
        log.info("%s is there already: %s", name, done)
        return done
    sft.exp_manager.resume_if_exists = same
    seed_everything(seed)
    jobs.train_sft(sft, ranks, directory, description=f"{name} (supervised)")
    made = latest(directory / "checkpoints")
    fresh.add(made)
    return made
