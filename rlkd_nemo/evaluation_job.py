"""A checkpoint's figures as a job of their own: told to stop, or out of time, it keeps what it has and goes on later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from rlkd_nemo.engine.ranks import Ranks

from omegaconf import OmegaConf

from rlkd_nemo import build, jobs
from rlkd_nemo.config.load import to_yaml
from rlkd_nemo.config.schema import Config
from rlkd_nemo.config.tree import flatten
from rlkd_nemo.engine.state.retention import META
from rlkd_nemo.errors import ConfigError
from rlkd_nemo.lifecycle.run_lock import RunLock
from rlkd_nemo.lifecycle.signals import stop_requested
from rlkd_nemo.lifecycle.wall_clock import WallClock
from rlkd_nemo.lifecycle.watchdog import deadline
from rlkd_nemo.report.files import dumps, write_atomically
from rlkd_nemo.report.progress import Progress
from rlkd_nemo.run_directory import FREE
from rlkd_nemo.training.evaluate import Evaluation
from rlkd_nemo.training.evaluate_in_parts import KeptSamples, evaluate_in_parts
from rlkd_nemo.training.exchange import agree, from_main
from rlkd_nemo.training.fit import FIRST_STEP
from rlkd_nemo.types import Problem

RESULT, KEPT = "evaluation.json", "evaluation.partial.jsonl"
# Sections that a sample depends on, but for what a resumed run may change.
_DECIDES = (
    "model.", "task.", "reward.", "gsrm.", "data.", "rollout.", "trainer.precision", "validation.", "demo.test_",
)  # fmt: skip
_FREE = tuple(key for key in FREE if key not in ("validation.", "demo."))


def run(cfg: Config, ranks: Ranks) -> Evaluation:
    """Evaluate `model.restore_from_path` on the test problems; writes evaluation.json to `exp_manager.exp_dir`.

    It stops between two parts, each of which every rank (or tensor-parallel group) decodes at once.

    Raises: Preempted when stopped early (kept); ConfigError without a checkpoint, or when what was kept is of another
        one, of other settings or problems; InputError when another job writes to the directory; FailureBudgetError when
        the system cannot score a sample.
    """
    if not cfg.model.restore_from_path:
        raise ConfigError(
            "model.restore_from_path is not set; name the checkpoint to evaluate, .../checkpoints/step-000030"
        )
    path, directory = Path(cfg.model.restore_from_path), Path(cfg.exp_manager.exp_dir)
    clock = WallClock(cfg.exp_manager.max_time_per_run, cfg.exp_manager.stop_margin_s)
    lock = RunLock(directory)
    from_main(lock.acquire)
    try:
        return _evaluate(cfg, ranks, path, directory, clock)
    finally:
        lock.release()


def _evaluate(cfg: Config, ranks: Ranks, path: Path, directory: Path, clock: WallClock) -> Evaluation:
    task, sampler = jobs.load_sampler(cfg, ranks, path)
    scorer = build.build_scorer(cfg, task, directory)
    problems, how = jobs.test_samples(cfg, task)
    kept = KeptSamples(directory / KEPT, _about(cfg, path, problems))
    if ranks.is_main and not cfg.exp_manager.resume_if_exists:
        kept.remove()
    progress: Progress | None = None

    def on_part(done: int) -> None:
        nonlocal progress
        clock.step_done()
        if ranks.is_main:
            progress = progress or Progress(len(problems), "test problems", start=done)
            progress.update(done)

    clock.start()
    try:
        with deadline(FIRST_STEP * cfg.trainer.watchdog_s, "evaluation"):
            result = evaluate_in_parts(
                sampler,
                scorer,
                problems,
                kept=kept,
                part=max(1, sampler.batch_size * sampler.num_units // how["samples"]),
                stop=lambda: agree(stop_requested() or clock.due(), ranks.device),
                on_part=on_part,
                **how,
            )
    finally:
        if progress is not None:
            progress.close()
    if ranks.is_main:
        numbers = {name.removeprefix("validation/"): value for name, value in result.metrics().items()}
        text = dumps({"checkpoint": cfg.model.restore_from_path, **numbers}, indent=2)
        write_atomically(directory / RESULT, text + "\n")
        kept.remove()
    return result


def _about(cfg: Config, path: Path, problems: Sequence[Problem]) -> dict[str, Any]:
    """Every setting that a sample depends on, which weights lie at `path`, and which problems the settings stand for."""
    resolved = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(to_yaml(cfg))))
    settings = flatten(resolved, "now")
    decisive = {s.key: s.value for s in settings if s.key.startswith(_DECIDES) and not s.key.startswith(_FREE)}
    # The same settings may stand for others: a prompt file that was edited.
    texts = json.dumps([(problem.id, problem.prompt, problem.answer, problem.teacher_paths) for problem in problems])
    return {**decisive, "problems": hashlib.sha256(texts.encode()).hexdigest(), "weights": _weights(path)}


def _weights(path: Path) -> str:
    """A checkpoint by its meta, which holds a checksum of each file; a Hugging Face directory by its files' sizes."""
    known = hashlib.sha256()
    for file in sorted(path.iterdir()):
        known.update(f"{file.name} {file.stat().st_size}\n".encode())
    if (path / META).is_file():
        known.update((path / META).read_bytes())
    return known.hexdigest()
