"""Mirrors of metrics.jsonl: TensorBoard event files and Weights & Biases. Both packages are loaded when asked for."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rlkd_nemo.config.schema import ExpManager
from rlkd_nemo.errors import ConfigError


class Sink(Protocol):
    """Where finite metrics of a step go as well."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take one step's metrics."""

    def close(self) -> None:
        """Flush."""


class TensorBoard:
    """Scalars in run_dir/tensorboard, written by the tensorboard package alone (its torch wrapper would load torch).

    Args: start_step: events of later steps, left by an interrupted process, are hidden by TensorBoard.
    """

    def __init__(self, run_dir: Path, start_step: int) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as err:
            raise ConfigError(
                "exp_manager.create_tensorboard_logger=true needs the package tensorboard, which cannot be loaded "
                f"({err}); install it, or set the key to false (metrics.jsonl is written anyway)"
            ) from err
        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(run_dir / "tensorboard"))
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=start_step + 1, session_log=start))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One event with all scalars of the step."""
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WandB:
    """A Weights & Biases run, offline unless `exp_manager.wandb_mode` says otherwise.

    Its id is kept in run_dir/wandb_id.txt, so that a resumed process continues the same run. W&B keeps the first value
    of a step that is logged twice, so steps replayed after an interruption show the earlier, equal value.
    """

    def __init__(self, run_dir: Path, settings: ExpManager) -> None:
        mode: Any = settings.wandb_mode
        try:
            import wandb
        except ImportError as err:
            raise ConfigError(
                f"exp_manager.create_wandb_logger=true needs the package wandb, which cannot be loaded ({err}); "
                "install it, or set the key to false"
            ) from err
        known = run_dir / "wandb_id.txt"
        if not known.exists():
            known.write_text(uuid.uuid4().hex[:8])
        self._run: Any = wandb.init(
            project=settings.wandb_project,
            mode=mode,
            dir=str(run_dir),
            id=known.read_text().strip(),
            resume="allow" if mode == "online" else None,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Mirror one step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def open_sinks(run_dir: Path, settings: ExpManager, start_step: int) -> list[Sink]:
    """The mirrors that `settings` asks for. Raises: ConfigError when a package is missing."""
    sinks: list[Sink] = []
    if settings.create_tensorboard_logger:
        sinks.append(TensorBoard(run_dir, start_step))
    if settings.create_wandb_logger:
        sinks.append(WandB(run_dir, settings))
    return sinks
