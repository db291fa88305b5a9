"""Whole jobs on the ranks at hand: reinforcement learning, supervised training, evaluation, conversion of weights.

Examples parse a config, start the ranks and call one of these.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

from rlkd_nemo.engine.ranks import Ranks

from rlkd_nemo import build
from rlkd_nemo.config.schema import Config
from rlkd_nemo.engine.actor import RLKDActor
from rlkd_nemo.engine.generate.engine import EmbeddedRollout
from rlkd_nemo.engine.hugging_face.config import is_hugging_face
from rlkd_nemo.engine.hugging_face.save import save_hugging_face
from rlkd_nemo.engine.model.build import build_model
from rlkd_nemo.engine.start import load_weights, model_from
from rlkd_nemo.engine.state.checkpoint import save_checkpoint
from rlkd_nemo.errors import ConfigError, InputError, Preempted
from rlkd_nemo.gsrm import demonstrations, schema
from rlkd_nemo.gsrm.chat_template import ChatTemplate
from rlkd_nemo.gsrm.demonstrations import Demonstrations
from rlkd_nemo.gsrm.prompting import Prompts
from rlkd_nemo.interfaces import Demonstrator, Task, Tokenizer
from rlkd_nemo.lifecycle.watchdog import deadline
from rlkd_nemo.report.metrics import read as read_metrics
from rlkd_nemo.report.progress import Progress
from rlkd_nemo.run_directory import RunDirectory
from rlkd_nemo.training.evaluate import Evaluation, evaluate
from rlkd_nemo.training.fit import FIRST_STEP, RLKDTrainer
from rlkd_nemo.training.sft import SFTTrainer
from rlkd_nemo.types import Problem

log = logging.getLogger(__name__)


def _whole_job(cfg: Config, what: str) -> AbstractContextManager[None]:
    """Bounds what no closer deadline bounds: reading weights, meeting the other ranks, writing reports."""
    return deadline(cfg.trainer.collective_timeout_s, what)


def train_rl(cfg: Config, ranks: Ranks) -> RLKDTrainer:
    """Run or resume an RLKD job in `exp_manager.exp_dir`. Raises Preempted when stopped early (saved)."""
    task, tokens = build.build_task(cfg)
    directory, steps = Path(cfg.exp_manager.exp_dir), cfg.trainer.rlkd.max_steps
    with (
        _whole_job(cfg, "training"),
        RunDirectory(directory, cfg, ranks, tokens, total_steps=steps, description=cfg.name) as run,
    ):
        return _train_rl(cfg, ranks, task, tokens, run)


def _train_rl(cfg: Config, ranks: Ranks, task: Task, tokens: Tokenizer, run: RunDirectory) -> RLKDTrainer:
    loop, directory = cfg.trainer.rlkd, run.path
    actor = build.build_actor(
        cfg,
        ranks,
        tokens,
        total_updates=loop.max_steps * cfg.rlkd.updates_per_batch * cfg.rlkd.epochs,
        gradient_clip_val=loop.gradient_clip_val,
    )
    run.data = getattr(task, "fingerprint", None)
    state = run.resume(actor)
    if state is None and cfg.model.restore_from_path:
        load_weights(cfg.model.restore_from_path, actor, tokenizer_pieces=tokens.pieces())
    teacher, reference = build.build_teachers(cfg, ranks, tokens, cfg.model.restore_from_path)
    scorer = build.build_scorer(cfg, task, directory)
    engine = build.build_sampler(cfg, actor.bare_model, ranks, tokens)
    # A scorer that works elsewhere gets what is decoded while the rest still is.
    engine.on_decoded = getattr(scorer, "begin", None)
    trainer = RLKDTrainer(
        cfg=cfg,
        objective_name=type(cfg.objective).__name__.lower(),
        objective=cfg.objective,
        task=task,
        actor=actor,
        engine=engine,
        scorer=scorer,
        teacher=teacher,
        reference=reference,
        drop_teacher_at=build.dropped_end(cfg, tokens) if teacher is not None else None,
        on_step=run.on_step,
        on_rollouts=run.on_rollouts,
        # By the main rank alone, which writes the metrics.
        probe=getattr(scorer, "probe", _no_probe) if ranks.is_main else _no_probe,
        save=lambda step, metrics, extra: run.save(actor, step, metrics, extra),
        stop_requested=run.stop_requested,
    )
    if state is not None:
        trainer.load_state_dict(state)
    if state is None:
        run.clear()  # only now: everything that was asked for has been found and loaded
    run.open(trainer.state.step)
    finished = trainer.fit()
    run.close()
    summary = {
        "objective": trainer.objective_name,
        "rl_steps": trainer.state.step,
        "rollouts": trainer.state.rollouts,
        "rollout_tokens": trainer.state.rollout_tokens,
        "seed": cfg.model.seed,
        **(_validations(directory) if ranks.is_main else {}),
    }
    run.finish(summary, done=finished)
    if not finished:
        raise Preempted(f"stopped after step {trainer.state.step} of {loop.max_steps}, saved in {run.checkpoints}")
    return trainer


def _no_probe(*_: Any) -> dict[str, float]:
    return {}


def _validations(directory: Path) -> dict[str, float]:
    """The first and the last validation of a run, as `accuracy_before`, `accuracy_after` and alike for structure."""
    lines = [line for line in read_metrics(directory) if "validation/accuracy" in line]
    return {
        f"{name}_{when}": line[f"validation/{name}"]
        for when, line in zip(("before", "after"), (lines[0], lines[-1]) if lines else ())
        for name in ("accuracy", "structure")
        if f"validation/{name}" in line
    }


def train_sft(cfg: Config, ranks: Ranks, directory: Path, description: str) -> RLKDActor:
    """Run or resume supervised training on the task's demonstrations. Raises Preempted when stopped early (saved)."""
    task, tokens = build.build_task(cfg)
    steps = cfg.trainer.sft.max_steps
    with (
        _whole_job(cfg, description),
        RunDirectory(directory, cfg, ranks, tokens, total_steps=steps, description=description) as run,
    ):
        return _train_sft(cfg, ranks, task, tokens, run)


def train_gsrm(cfg: Config, ranks: Ranks) -> Path:
    """Train the GSRM on the rows of `gsrm.training` and export it in Hugging Face's format.

    Returns: the exported directory. Raises: Preempted when stopped early (saved); InputError for rows that cannot be used,
    or an export that is there already; ConfigError without a tokenizer that has a chat template.
    """
    settings, tokenizer_cfg = cfg.gsrm.training, cfg.model.tokenizer
    target = Path(settings.export or Path(cfg.exp_manager.exp_dir) / "hf")
    if not settings.data:
        raise ConfigError(
            "gsrm.training.data is not set; wanted a file of rows, as examples/label_gsrm_data.py writes them"
        )
    if target.exists():
        raise InputError(f"{target} exists already; name a directory that does not (gsrm.training.export)")
    if tokenizer_cfg.library != "huggingface" or not tokenizer_cfg.type:
        raise ConfigError(
            f"model.tokenizer.library={tokenizer_cfg.library} has no chat template, which the GSRM is asked through; wanted "
            "huggingface, and its directory in model.tokenizer.type"
        )
    _, tokens = build.build_task(cfg)
    form = cast(schema.Form, settings.form)
    rows = demonstrations.read(settings.data, settings.held_out, form)
    with Progress(len(rows), "rows put into tokens") if ranks.is_main else nullcontext() as progress:
        examples = Demonstrations(
            rows,
            Prompts(cfg.gsrm.llm.prompts, cfg.gsrm.llm.max_problem_chars, cfg.gsrm.llm.max_text_chars),
            ChatTemplate(tokenizer_cfg.type),
            tokens,
            form=form,
            max_tokens=cfg.model.encoder_seq_length,
            drop_longer=settings.drop_longer,
            on_row=progress.update if progress is not None else lambda done: None,
        )
    if settings.epochs is not None:
        cfg = copy.deepcopy(cfg)
        cfg.trainer.sft.max_steps = max(1, math.ceil(settings.epochs * len(examples) / cfg.data.global_batch_size))
    steps = cfg.trainer.sft.max_steps
    if ranks.is_main:
        log.info(
            "%d rows, %d left out as too long, %d updates of %d",
            len(examples), examples.dropped, steps, cfg.data.global_batch_size,
        )  # fmt: skip
    with (
        _whole_job(cfg, cfg.name),
        RunDirectory(Path(cfg.exp_manager.exp_dir), cfg, ranks, tokens, total_steps=steps, description=cfg.name) as run,
    ):
        actor = _train_sft(cfg, ranks, examples, tokens, run)
        return save_hugging_face(actor, target, tokenizer_cfg.type)


def _train_sft(cfg: Config, ranks: Ranks, task: Demonstrator, tokens: Tokenizer, run: RunDirectory) -> RLKDActor:
    loop = cfg.trainer.sft
    actor = build.build_actor(
        cfg, ranks, tokens, total_updates=loop.max_steps, gradient_clip_val=loop.gradient_clip_val
    )
    run.data = getattr(task, "fingerprint", None)
    state = run.resume(actor)
    if state is None and cfg.model.restore_from_path:
        load_weights(cfg.model.restore_from_path, actor, tokenizer_pieces=tokens.pieces())

    def named(metrics: dict[str, float]) -> dict[str, float]:
        return {f"loss/{name}": value for name, value in metrics.items()}

    trainer = SFTTrainer(
        actor=actor,
        task=task,
        tokenizer=tokens,
        loop=loop,
        data=cfg.data,
        max_tokens=cfg.model.encoder_seq_length,
        seed=cfg.data.shuffle_seed,
        watchdog_s=cfg.trainer.watchdog_s,
        on_step=lambda step, metrics: run.on_step(step, named(metrics)),
        save=lambda step, metrics, extra: run.save(actor, step, named(metrics), extra),
        stop_requested=run.stop_requested,
    )
    if state is not None:
        trainer.step = int(state["step"])
    if state is None:
        run.clear()
    run.open(trainer.step)
    finished = trainer.fit()
    run.close()
    run.finish({"steps": trainer.step, "seed": cfg.model.seed}, done=finished)
    if not finished:
        raise Preempted(f"stopped after step {trainer.step} of {loop.max_steps}, saved in {run.checkpoints}")
    return actor


def evaluate_checkpoint(cfg: Config, ranks: Ranks, path: Path, directory: Path, **overrides: Any) -> Evaluation:
    """mean@k of a checkpoint on the test split, `demo.test_problems` x `demo.test_samples`; a hole is an error."""
    task, sampler = load_sampler(cfg, ranks, path)
    return evaluate_sampler(cfg, sampler, build.build_scorer(cfg, task, directory), task, **overrides)


def load_sampler(cfg: Config, ranks: Ranks, path: Path) -> tuple[Task, EmbeddedRollout]:
    """The task, and a sampler that holds a checkpoint's weights."""
    task, tokens = build.build_task(cfg)
    settings = model_from(path, cfg.model)
    with _whole_job(cfg, "loading a model to evaluate"):
        model = build_model(settings, tokens.vocab_size, ranks, cfg.trainer.precision)
        load_weights(path, model, tokenizer_pieces=tokens.pieces())
        sampler = build.build_sampler(dataclasses.replace(cfg, model=settings), model, ranks, tokens)
        sampler.refit(0)
    return task, sampler


def evaluate_sampler(cfg: Config, sampler, scorer, task, *, problems: int | None = None) -> Evaluation:
    """The same for a sampler that already holds weights."""
    wanted, how = test_samples(cfg, task, problems)
    with deadline(FIRST_STEP * cfg.trainer.watchdog_s, "evaluation"):
        return evaluate(sampler, scorer, wanted, refuse_failures=True, **how)


def test_samples(cfg: Config, task: Task, problems: int | None = None) -> tuple[list[Problem], dict[str, Any]]:
    """The test problems, and how they are sampled: arguments of `evaluate`."""
    difficulty = cfg.data.validation_difficulty or cfg.data.train_difficulty
    return task.generate("test", 0, difficulty, problems or cfg.demo.test_problems), {
        "samples": cfg.demo.test_samples,
        "temperature": cfg.validation.temperature,
        "max_new_tokens": cfg.validation.max_new_tokens or cfg.rollout.max_new_tokens,
        "seed": 1,
    }


def convert(cfg: Config, ranks: Ranks) -> Path:
    """`convert.source`, a Hugging Face directory or a checkpoint, to the other of the two in `convert.target`.

    A Hugging Face directory becomes `<target>/step-000000`, weights only, under `model.tokenizer`'s vocabulary.
    Returns: what was written. Raises: InputError when the source cannot be used or the target exists.
    """
    for key in ("source", "target"):
        if not getattr(cfg.convert, key):
            raise ConfigError(f"convert.{key} is not set; wanted a directory")
    source, target = Path(cfg.convert.source), Path(cfg.convert.target)
    if target.exists():
        raise InputError(f"convert.target={target} exists already; name a directory that does not")
    with _whole_job(cfg, "conversion"):
        return _convert(cfg, ranks, source, target)


def _convert(cfg: Config, ranks: Ranks, source: Path, target: Path) -> Path:
    _, tokens = build.build_task(cfg)
    model = build_model(model_from(source, cfg.model), tokens.vocab_size, ranks, cfg.trainer.precision)
    load_weights(source, model, tokenizer_pieces=tokens.pieces())
    if not is_hugging_face(source):
        directory = cfg.model.tokenizer.type if cfg.model.tokenizer.library == "huggingface" else None
        return save_hugging_face(model, target, directory, family=cfg.convert.family)
    if cfg.convert.family is not None:
        raise ConfigError(f"convert.family={cfg.convert.family} is of use to Hugging Face only; {source} names its own")
    return save_checkpoint(target, 0, model, extra={}, tokenizer_pieces=tokens.pieces())
