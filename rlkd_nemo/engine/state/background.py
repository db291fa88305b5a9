"""One piece of work beside the training, on every rank: writing a checkpoint whose data has been copied.

A thread with a process group of its own (gloo), so that its agreements cross no collective of the training. Chosen over
Megatron's AsyncCallsQueue, which starts processes (seconds of the training's time for a small model), and over
`torch.distributed.checkpoint.async_save`, whose failure reaches one rank only and which knows no publishing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from rlkd_nemo.training.exchange import agree


class Background:
    """At most one save in flight. All ranks call every method alike."""

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo") if dist.get_world_size() > 1 else None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self.what = ""
        self.spent_s = 0.0  # by the last one, from its start until it was published

    @property
    def busy(self) -> bool:
        """Has one been started whose end was not collected by `wait`?"""
        return self._thread is not None

    def start(self, work: Callable[[dist.ProcessGroup | None], Path], what: str) -> None:
        """Begin `work`, which gets a group of all ranks."""
        assert not self.busy  # the caller collects the one before, so that its failure is told
        self.what = what
        self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint", daemon=True)
        self._thread.start()

    def done(self, device: object = None) -> bool:
        """Has it ended on every rank? One all-reduce; the same answer on all."""
        assert self._thread is not None
        return not agree(self._thread.is_alive(), device)  # type: ignore[arg-type]

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until it has ended; False if `timeout_s` passed before. Nothing to do when none was started.

        Raises: what the work raised; CheckpointError is the same on every rank.
        """
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return False
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        return True

    def _run(self, work: Callable[[dist.ProcessGroup | None], Path]) -> None:
        started = time.monotonic()
        try:
            work(self._group)
        except BaseException as err:  # noqa: BLE001 (raised again by `wait`)
            self._failure = err
        self.spent_s = time.monotonic() - started
