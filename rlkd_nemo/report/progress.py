"""Where a run stands: one live line on a terminal, single log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

log = logging.getLogger(__name__)

PLAIN_INTERVAL_S = 5.0  # a supervised stage does ten steps a second; a log wants no more than one line in a while


class Progress:
    """Step n of N, the latest numbers and the time left. Made on the main rank only.

    Without a terminal each line goes to the log (INFO): the first and the last step always, the others at most once
    every `PLAIN_INTERVAL_S` seconds.

    Args:
        total: steps of the whole run.
        description: what runs, e.g. `teacher (supervised)`.
        start: steps done before this process; they count as done but not in the pace.
        live: draw on stderr in place; None: if stderr is a terminal.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        total: int,
        description: str,
        start: int = 0,
        *,
        live: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.description, self.start = total, description, start
        self._clock, self._began = clock, clock()
        self._last_line: float | None = None
        self._bar: RichProgress | None = None
        if sys.stderr.isatty() if live is None else live:
            self._bar = RichProgress(
                TextColumn("{task.description}", style="bold", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[text]}", markup=False),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(description, total=total, completed=start, text="")
            self._bar.start()

    def update(self, step: int, **fields: float | str) -> None:
        """Show that `step` steps are done, with the numbers given; names are shown as they are."""
        text = "  ".join([*(f"{name} {_short(value)}" for name, value in fields.items()), *self._time_left(step)])
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
            return
        now = self._clock()
        if self._last_line is None or step >= self.total or now - self._last_line >= PLAIN_INTERVAL_S:
            self._last_line = now
            log.info("%s %d/%d  %s", self.description, step, self.total, text)

    def close(self) -> None:
        """Leave the last state on the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _time_left(self, step: int) -> list[str]:
        done = step - self.start
        if done <= 0 or step >= self.total:
            return [f"took {duration(self._clock() - self._began)}"] if step >= self.total else []
        return [f"left {duration((self._clock() - self._began) / done * (self.total - step))}"]

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def duration(seconds: float) -> str:
    """Readable time: 7s, 3m05s, 2h10m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _short(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
