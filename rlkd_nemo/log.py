"""Logging set up in one call; every line starts with the time, `role rank step` and the level."""

from __future__ import annotations

import logging
import sys
from collections import deque
from typing import TextIO

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class _Prefix(logging.Filter):
    """Adds role, rank and step to each record; not a formatter default, because the step moves."""

    def __init__(self, role: str, rank: int) -> None:
        super().__init__()
        self.role, self.rank, self.step = role, rank, 0

    def filter(self, record: logging.LogRecord) -> bool:
        record.role, record.rank, record.step = self.role, self.rank, self.step
        return True


class _StderrHandler(logging.StreamHandler):
    """Writes to whatever `sys.stderr` is now: a live progress bar replaces it while it is on the screen."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


class _Recent(logging.Handler):
    """Keeps the newest lines, for the last words of a rank that is about to be ended."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=8)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


_prefix: _Prefix | None = None
_recent = _Recent()


def configure(role: str, rank: int = 0, level: str | int = "INFO") -> None:
    """Send log lines to stderr, e.g. `12:00:01 train 0 step 12 INFO rlkd_nemo.training.fit: ...`.

    A second call replaces the first. Ranks other than 0 speak from WARNING up, because their INFO repeats rank 0's;
    at DEBUG every rank says everything. Libraries' own loggers are heard from WARNING up, except at DEBUG.

    Args:
        role: what this process does: train, sft, gsrm, teacher, ...
        rank: global rank.
        level: DEBUG, INFO, WARNING or ERROR, or its number.
    Raises: ValueError for another level.
    """
    global _prefix
    number = level if isinstance(level, int) else logging.getLevelName(level.upper())
    if not isinstance(number, int):
        raise ValueError(f"log level {level!r} is unknown; wanted one of {', '.join(_LEVELS)}")
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _StderrHandler)]:
        root.removeHandler(old)
    _prefix = _Prefix(role, rank)
    root.removeHandler(_recent)
    layout = "%(asctime)s %(role)s %(rank)s step %(step)s %(levelname)s %(name)s: %(message)s"
    handlers: tuple[logging.Handler, ...] = (_StderrHandler(), _recent)
    for handler in handlers:
        handler.filters.clear()
        handler.addFilter(_prefix)
        handler.setFormatter(logging.Formatter(layout, "%H:%M:%S"))
        root.addHandler(handler)
    everything = number <= logging.DEBUG
    root.setLevel(number if everything else max(number, logging.WARNING))
    own = logging.getLogger("rlkd_nemo")
    own.setLevel(number if everything or rank == 0 else max(number, logging.WARNING))


def last_lines() -> list[str]:
    """The newest lines of this process, oldest first."""
    return list(_recent.lines)


def set_step(step: int) -> None:
    """The step named in the lines from now on; nothing happens before `configure`."""
    if _prefix is not None:
        _prefix.step = step
