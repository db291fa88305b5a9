"""A run's directory: resolved config, metrics, audit, checkpoints, progress; written by the main rank only."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlkd_nemo.engine.ranks import Ranks

import torch.distributed as dist
from omegaconf import OmegaConf

from rlkd_nemo.config.load import to_yaml
from rlkd_nemo.config.schema import Config
from rlkd_nemo.config.tree import flatten
from rlkd_nemo.engine.actor import RLKDActor
from rlkd_nemo.engine.state import retention
from rlkd_nemo.engine.state.background import Background
from rlkd_nemo.engine.state.checkpoint import begin_save, load_checkpoint, prune, save_checkpoint
from rlkd_nemo.errors import CheckpointError, ConfigError, DamagedCheckpointError, InputError
from rlkd_nemo.interfaces import Tokenizer
from rlkd_nemo.lifecycle.run_lock import RunLock
from rlkd_nemo.lifecycle.signals import stop_requested
from rlkd_nemo.lifecycle.wall_clock import WallClock
from rlkd_nemo.lifecycle.watchdog import deadline
from rlkd_nemo.log import set_step
from rlkd_nemo.report.audit import RolloutAudit
from rlkd_nemo.report.metrics import MetricsLog
from rlkd_nemo.report.page import template, write_report
from rlkd_nemo.report.progress import Progress
from rlkd_nemo.report.summary import write_summary
from rlkd_nemo.training.exchange import agree
from rlkd_nemo.training.step import Experience

log = logging.getLogger(__name__)

# After an error, so long for an asynchronous save to end; if a rank is gone it never does.
_LAST_SAVE_S = 10.0


class RunDirectory:
    """Where one training job keeps everything, and how it comes back to it.

    Args:
        directory: the run's folder; an existing one is continued if `exp_manager.resume_if_exists`.
        total_steps, description: for the progress line.
    """

    def __init__(
        self, directory: Path, cfg: Config, ranks: Ranks, tokens: Tokenizer, *, total_steps: int, description: str
    ) -> None:
        self.path, self.cfg, self.ranks, self.tokens = directory, cfg, ranks, tokens
        self.checkpoints = directory / "checkpoints"
        self.data: str | None = None  # fingerprint of the task's problems, where they come from a file
        self.total_steps, self.description = total_steps, description
        self.metrics: MetricsLog | None = None
        self.audit: RolloutAudit | None = None
        self.progress: Progress | None = None
        self.clock = WallClock(cfg.exp_manager.max_time_per_run, cfg.exp_manager.stop_margin_s)
        self._lock = RunLock(directory)
        self._background: Background | None = None
        self._accuracy: float | None = None

    def __enter__(self) -> RunDirectory:
        """Hold the directory against other jobs. Raises InputError on every rank if it cannot be had or written."""
        refusal: list[str | None] = [None]
        if self.ranks.is_main:
            try:
                self._lock.acquire()
            except InputError as err:
                refusal = [str(err)]
        if dist.get_world_size() > 1:
            dist.broadcast_object_list(refusal)
        if refusal[0] is not None:
            raise InputError(refusal[0])
        return self

    def __exit__(self, *raised: object) -> None:
        """Close the files and give the directory back; a save in flight may still end, unless its ranks are gone."""
        try:
            if self._background is not None and self._background.busy:
                self._background.wait(_LAST_SAVE_S)
        except CheckpointError as err:
            log.error("%s", err)  # beside the error that ends the job
        finally:
            self._close_files()
            self._lock.release()

    def resume(self, actor: RLKDActor) -> dict[str, Any] | None:
        """Load the newest whole checkpoint of this directory, if there is one and resuming is wanted.

        One that is damaged is kept under another name and the one before it is taken: said in the log as an error, and
        kept in resumes.jsonl.

        Returns: the extra state it was saved with; None when there was never a checkpoint.
        Raises: CheckpointError when there are checkpoints and none is whole; ConfigError when settings differ.
        """
        wanted = self.cfg.exp_manager.resume_if_exists
        candidates = retention.published(self.checkpoints) if wanted else []
        set_aside = retention.damaged(self.checkpoints) if wanted else []
        self._barrier()  # every rank has looked before the main rank removes anything
        if not candidates and not set_aside:
            return None
        changed = changed_settings(self.path, self.cfg)
        if changed:
            raise ConfigError(
                f"{self.path} holds a run with other settings ({'; '.join(changed[:6])}): going on would mix two runs. "
                "Set exp_manager.exp_dir to another directory, or exp_manager.resume_if_exists=false to start anew there"
            )
        skipped: list[dict[str, str]] = []
        for path in reversed(candidates):
            try:
                extra = load_checkpoint(path, actor, tokenizer_pieces=self.tokens.pieces())
            except DamagedCheckpointError as err:
                self._barrier()  # every rank has seen it
                if self.ranks.is_main:
                    kept = retention.set_aside(path).name
                    log.error("DAMAGED CHECKPOINT, trying the one before it: %s. Kept as %s", err, kept)
                    skipped.append({"skipped_checkpoint": path.name, "kept_as": kept, "why": str(err)})
                continue
            self._refuse_other_data(path, extra)
            log.info("resumed from %s", path)
            self._record({"resumed_from": path.name, "skipped": skipped})
            return extra
        self._record({"resumed_from": None, "skipped": skipped})
        raise CheckpointError(
            f"no checkpoint in {self.checkpoints} is whole: all of them are kept as *{retention.DAMAGED}. Mend one and "
            "give it its name back, or set exp_manager.resume_if_exists=false to start anew"
        )

    def _refuse_other_data(self, path: Path, extra: dict[str, Any]) -> None:
        """The same settings may stand for other problems now: a prompt file that was edited."""
        was = extra.pop("data", self.data)  # older checkpoints did not say
        if was != self.data:
            raise ConfigError(
                f"{path} was trained on other problems: their fingerprint was {was}, now it is {self.data} (task.path, or "
                "gsrm.training.data). Going on would change the order of the data; bring the file back, or start anew in "
                "another directory"
            )

    def _record(self, entry: Mapping[str, Any]) -> None:
        if self.ranks.is_main:
            with (self.path / "resumes.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"time": time.time(), **entry}) + "\n")

    def _barrier(self) -> None:
        if dist.get_world_size() > 1:
            dist.barrier()

    def clear(self) -> None:
        """Remove what an earlier run left: checkpoints, metrics, audit."""
        if self.ranks.is_main:
            for name in ("checkpoints", "rollouts", "tensorboard"):
                shutil.rmtree(self.path / name, ignore_errors=True)
            for name in ("metrics.jsonl", "resumes.jsonl", "config.yaml", "summary.json", "report.html"):
                (self.path / name).unlink(missing_ok=True)
        self._barrier()

    def open(self, start_step: int) -> None:
        """Start writing; steps after `start_step` that an earlier process logged will be replaced."""
        if self.ranks.is_main:
            self.path.mkdir(parents=True, exist_ok=True)
            partial = self.path / "config.yaml.tmp"
            partial.write_text(to_yaml(self.cfg))
            os.replace(partial, self.path / "config.yaml")
            self.metrics = MetricsLog(self.path, self.cfg.exp_manager, start_step=start_step)
            self.audit = RolloutAudit(self.path, self.cfg.exp_manager.audit_rollouts, start_step)
            self.progress = Progress(self.total_steps, self.description, start=start_step)
            template()  # the report's, now: a job that is told to stop should be gone soon after its save
        self.clock.start()

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        """Log one step and move the progress line."""
        set_step(step)
        if "time/rollout_s" in metrics and "rollout/tokens" in metrics:
            metrics["rollout/tokens_per_s"] = metrics["rollout/tokens"] / max(metrics["time/rollout_s"], 1e-9)
        self._accuracy = metrics.get("validation/accuracy", self._accuracy)
        if self.metrics is not None:
            self.metrics.log(step, metrics)
        if self.progress is not None:
            shown = {
                "reward": metrics.get("reward/total"),
                "loss": metrics.get("loss/loss") if "reward/total" not in metrics else None,
                "accuracy": self._accuracy,
                "tokens/s": metrics.get("rollout/tokens_per_s"),
            }
            self.progress.update(step, **{name: value for name, value in shown.items() if value is not None})

    def on_rollouts(self, step: int, experience: Experience) -> None:
        """Keep why each reward was given."""
        if self.audit is not None:
            self.audit.write(step, experience.rollouts, experience.scores, experience.advantages.tolist())

    def save(self, actor: RLKDActor, step: int, metrics: Mapping[str, float], extra: Mapping[str, Any]) -> None:
        """Checkpoint and keep the newest and the best; with `async_save` it is written while training goes on.

        Raises: CheckpointError on every rank if any could not write, this time or the asynchronous save before.
        """
        kept = self.cfg.exp_manager.checkpoint_callback_params
        self._collect()
        started = time.monotonic()
        known = {
            "extra": {**extra, "data": self.data},
            "tokenizer_pieces": self.tokens.pieces(),
            "metric": metrics.get(kept.monitor),
        }
        with deadline(self.cfg.trainer.collective_timeout_s, f"save of step {step}"):
            if kept.async_save:
                self._background = self._background or Background()
                begin_save(self._background, self.checkpoints, step, actor, **known)
                return
            save_checkpoint(self.checkpoints, step, actor, **known)
            self._prune()
        self.clock.saved(time.monotonic() - started)

    def _prune(self) -> None:
        kept = self.cfg.exp_manager.checkpoint_callback_params
        if self.ranks.is_main:
            prune(self.checkpoints, kept.save_last, kept.save_top_k, kept.mode)
        self._barrier()

    def _collect(self) -> None:
        """Wait for the asynchronous save in flight, if there is one. Raises what it raised."""
        if self._background is not None and self._background.busy:
            with deadline(self.cfg.trainer.collective_timeout_s, f"waiting for the {self._background.what}"):
                self._background.wait()
            self.clock.saved(self._background.spent_s)
            self._prune()

    def stop_requested(self) -> bool:
        """Has any rank been told to stop, or is the job's time up? Once after each step; the same answer on all ranks."""
        self.clock.step_done()
        if self._background is not None and self._background.busy and self._background.done(self.ranks.device):
            self._collect()
        return agree(stop_requested() or self.clock.due(), self.ranks.device)

    def finish(self, summary: Mapping[str, Any], *, done: bool) -> None:
        """Close the files and write the report; summary.json only when the job is `done`."""
        self.close()
        if self.ranks.is_main:
            if done:
                write_summary(self.path, summary)
            write_report(self.path, title=f"rlkd_nemo: {self.description}", summary=summary)

    def close(self) -> None:
        """Wait for a save in flight, then flush and close the files. Raises what the save raised."""
        self._collect()
        self._close_files()

    def _close_files(self) -> None:
        for part in (self.progress, self.metrics):
            if part is not None:
                part.close()


# Settings that a resumed run may change: they move neither the data nor the objective.
FREE = (
    "name", "exp_manager.", "validation.", "gate.", "demo.", "convert.",
    "trainer.num_nodes", "trainer.devices", "trainer.accelerator", "trainer.watchdog_s", "trainer.heartbeat_s",
    "trainer.collective_timeout_s", "trainer.rlkd.max_steps", "trainer.rlkd.save_interval",
    "trainer.rlkd.val_check_interval", "trainer.sft.max_steps", "trainer.sft.save_interval",
    "model.tensor_model_parallel_size", "model.sequence_parallel", "model.virtual_pipeline_model_parallel_size",
    "model.activations_checkpoint_",
    "model.pipeline_model_parallel_size", "model.micro_batch_", "model.forward_micro_batch_",
    "model.context_parallel_size", "model.packed_sequences", "model.log_prob_chunk_tokens", "model.optim.", "rollout.batch_size",
    "rollout.tensor_model_parallel_size",
    "gsrm.service.", "gsrm.server.", "gsrm.token_env", "gsrm.llm.decomposer.urls", "gsrm.llm.judge.urls",
    "gsrm.llm.decomposer.api_key_env", "gsrm.llm.judge.api_key_env",
    "gsrm.prefill.", "gsrm.label.", "gsrm.evaluation.", "gsrm.training.export", "layout.",
)  # fmt: skip


def changed_settings(directory: Path, cfg: Config, watched: tuple[str, ...] | None = None) -> list[str]:
    """Settings of the run saved in `directory` that `cfg` changes, as `key: was, now`.

    Args: watched: beginnings of the keys to compare; None: all that a resume must not change.
    """
    file = directory / "config.yaml"
    if not file.is_file():
        return []
    was = {s.key: s.value for s in flatten(OmegaConf.to_container(OmegaConf.load(file)), "saved")}
    # What the saved config lacks did not exist then: the run had today's default.
    was = {s.key: s.value for s in flatten(OmegaConf.to_container(OmegaConf.structured(Config())), "default")} | was
    now = {s.key: s.value for s in flatten(OmegaConf.to_container(OmegaConf.create(to_yaml(cfg))), "now")}
    return [
        f"{key}: {was.get(key)}, now {now.get(key)}"
        for key in sorted(was.keys() | now.keys())
        if was.get(key) != now.get(key) and (key.startswith(watched) if watched else not key.startswith(FREE))
    ]
