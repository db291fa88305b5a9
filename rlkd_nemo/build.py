"""Config to objects: the one place that knows which implementation stands behind each Protocol."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from rlkd_nemo.engine.ranks import Ranks, init_ranks

from rlkd_nemo import tasks, tokenizer
from rlkd_nemo.config.objectives import needs_teacher
from rlkd_nemo.config.schema import Config, Optim
from rlkd_nemo.engine.actor import RLKDActor
from rlkd_nemo.engine.generate.engine import EmbeddedRollout
from rlkd_nemo.engine.model.build import build_model
from rlkd_nemo.engine.start import load_weights, model_from
from rlkd_nemo.engine.teacher import FrozenModel
from rlkd_nemo.errors import ConfigError
from rlkd_nemo.interfaces import Scorer, Task, Tokenizer
from rlkd_nemo.lifecycle.signals import stop_requested
from rlkd_nemo.rewards.blend import EmbeddedScorer

log = logging.getLogger(__name__)


def build_ranks(cfg: Config) -> Ranks:
    """Join the launcher's world in the config's layout."""
    return init_ranks(
        cfg.model.tensor_model_parallel_size,
        cfg.model.pipeline_model_parallel_size,
        context_parallel_size=cfg.model.context_parallel_size,
        accelerator=cfg.trainer.accelerator,
        seed=cfg.model.seed,
        timeout_s=cfg.trainer.collective_timeout_s,
        heartbeat_s=cfg.trainer.heartbeat_s,
    )


def build_task(cfg: Config) -> tuple[Task, Tokenizer]:
    """The task and the tokenizer that student, teacher and reference share."""
    task = tasks.build(cfg.task)
    return task, tokenizer.build(cfg.model.tokenizer, task)


def build_actor(
    cfg: Config,
    ranks: Ranks,
    tokens: Tokenizer,
    *,
    total_updates: int,
    gradient_clip_val: float,
    optim: Optim | None = None,
) -> RLKDActor:
    """The student with its optimizer, random weights."""
    model = cfg.model if optim is None else dataclasses.replace(cfg.model, optim=optim)
    return RLKDActor(
        model,
        tokens.vocab_size,
        ranks,
        pad_id=tokens.pad_id,
        precision=cfg.trainer.precision,
        gradient_clip_val=gradient_clip_val,
        total_updates=total_updates,
    )


def build_frozen(cfg: Config, path: str | Path, ranks: Ranks, tokens: Tokenizer) -> FrozenModel:
    """A frozen model from a checkpoint, in the student's layout; its architecture is the checkpoint's own."""
    # No virtual pipeline: it shortens the wait between forward and backward, and there is no backward.
    settings = dataclasses.replace(model_from(path, cfg.model), virtual_pipeline_model_parallel_size=None)
    model = build_model(settings, tokens.vocab_size, ranks, cfg.trainer.precision)
    load_weights(path, model, tokenizer_pieces=tokens.pieces())
    return FrozenModel(model, ranks, temperature=cfg.rollout.temperature, pad_id=tokens.pad_id)


def build_teachers(
    cfg: Config, ranks: Ranks, tokens: Tokenizer, start: str | Path | None
) -> tuple[FrozenModel | None, FrozenModel | None]:
    """Teacher and reference, each only if the objective reads it.

    Args: start: checkpoint of the start weights, which the reference is.
    """
    teacher = reference = None
    if needs_teacher(cfg.objective):
        teacher = build_frozen(cfg, cfg.teacher.restore_from_path, ranks, tokens)
    elif cfg.teacher.restore_from_path:
        log.warning(
            "teacher.restore_from_path is set, but objective %s reads no teacher: it is not loaded", cfg.objective
        )
    if cfg.objective.reference_kl > 0:
        reference = build_frozen(cfg, start, ranks, tokens)
    return teacher, reference


def dropped_end(cfg: Config, tokens: Tokenizer) -> int | None:
    """The token at which the teacher's term is left out: the student's end of text, where the teacher has another."""
    end = tokenizer.end_of_its_own(tokens, cfg.teacher.restore_from_path)
    if end is not None:
        log.info("the teacher ends its texts with another token: its term is left out at %r", tokens.pieces()[end])
    return end


def build_sampler(cfg: Config, model, ranks: Ranks, tokens: Tokenizer) -> EmbeddedRollout:
    """The embedded rollout engine on a model's weights."""
    return EmbeddedRollout(
        model,
        ranks,
        tokens,
        tensor_model_parallel_size=cfg.rollout.tensor_model_parallel_size,
        batch_size=cfg.rollout.batch_size,
    )


def build_scorer(cfg: Config, task: Task, run_dir: Path) -> Scorer:
    """Outcome, format, tag and the structure reward, embedded or from a service that is ready by then.

    Raises: what `service.build.scorer` raises.
    """
    if cfg.gsrm.scorer == "service":
        # Late: the embedded scorer runs without the HTTP libraries.
        try:
            from rlkd_nemo.gsrm.service.build import scorer
        except ImportError as err:
            raise ConfigError(f"gsrm.scorer=service needs {err.name}: pip install 'rlkd_nemo[gsrm]'") from err

        return scorer(cfg, task, stop_requested)
    return EmbeddedScorer(task, cfg.reward, cfg.gsrm, Path(cfg.gsrm.reference_store or run_dir / "references"))
