"""Which checkpoints there are and which stay: newest, best, prune.

A checkpoint is a folder `step-000010` with a `meta.json`. Whatever ends in `.tmp` is being written or removed, or was
when its process died, and is never taken for one; nor is what was set aside as `.damaged`, which nothing here
removes. Call from one rank only; nothing here talks to the others.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

from rlkd_nemo.errors import ConfigError

META = "meta.json"
TEMPORARY = ".tmp"
DAMAGED = ".damaged"
_NAME = re.compile(r"step-(\d+)")


def checkpoint_path(directory: str | Path, step: int) -> Path:
    """Where the checkpoint of `step` is published."""
    return Path(directory) / f"step-{step:06d}"


def is_named(path: Path) -> bool:
    """Has it the name of a published checkpoint?"""
    return _NAME.fullmatch(path.name) is not None


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removeprefix("step-"))


def checkpoints(directory: str | Path) -> list[Path]:
    """Complete checkpoints, oldest first; an empty list when there is no such directory."""
    directory = Path(directory)
    if not directory.is_dir():
        return []
    found = [path for path in directory.iterdir() if _NAME.fullmatch(path.name) and (path / META).is_file()]
    return sorted(found, key=step_of)


def published(directory: str | Path) -> list[Path]:
    """All folders that have a checkpoint's name, oldest first, even one whose meta is gone: it had one."""
    directory = Path(directory)
    if not directory.is_dir():
        return []
    return sorted((p for p in directory.iterdir() if p.is_dir() and is_named(p)), key=step_of)


def set_aside(path: Path) -> Path:
    """Give a damaged checkpoint a name under which it is never picked up again; nothing of it is removed."""
    number, kept = 1, path.with_name(path.name + DAMAGED)
    while kept.exists():
        number, kept = number + 1, path.with_name(f"{path.name}{DAMAGED}-{number}")
    return path.rename(kept)


def damaged(directory: str | Path) -> list[Path]:
    """What `set_aside` kept."""
    return sorted(Path(directory).glob(f"step-*{DAMAGED}*"))


def latest(directory: str | Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    return next(iter(reversed(checkpoints(directory))), None)


def best(directory: str | Path, mode: str = "max") -> Path | None:
    """The checkpoint with the best metric, the newer of equals; None when none has a metric."""
    return next(iter(_ranked(directory, mode)), None)


def prune(directory: str | Path, keep_last: int, keep_best: int, mode: str = "max") -> list[Path]:
    """Remove all but the newest `keep_last` and the best `keep_best`; the newest and the best stay whatever is asked.

    Args:
        mode: `max` or `min`: which metric is better.
    Returns: what was removed.
    Raises: ConfigError on a mode that is neither.
    """
    every = checkpoints(directory)
    keep = {*every[-max(1, keep_last) :], *_ranked(directory, mode)[: max(1, keep_best)]}
    removed = [path for path in every if path not in keep]
    for path in removed:
        discard(path)
    return removed


def discard(path: Path) -> None:
    """Remove a checkpoint; it stops being one at once, even if the removal is cut short."""
    shutil.rmtree(retire(path))


def retire(path: Path) -> Path:
    """Take its name from a checkpoint; what it is called then, until somebody removes it (`clean` does in any case)."""
    doomed = path.with_name(f"{path.name}.removed{TEMPORARY}")
    shutil.rmtree(doomed, ignore_errors=True)
    return path.rename(doomed)


def clean(directory: Path) -> list[Path]:
    """Remove what interrupted saves and removals left; returns it."""
    left = [path for path in directory.glob(f"step-*{TEMPORARY}") if path.is_dir()]
    for path in left:
        shutil.rmtree(path)
    return left


def _ranked(directory: str | Path, mode: str) -> list[Path]:
    """Checkpoints that have a metric, best first, newer first among equals."""
    if mode not in ("max", "min"):
        raise ConfigError(f"exp_manager.checkpoint_callback_params.mode={mode!r} is unknown; choose max or min")
    sign = -1.0 if mode == "max" else 1.0
    metrics = {path: _metric(path) for path in checkpoints(directory)}
    measured = [path for path, value in metrics.items() if value is not None and not math.isnan(value)]
    return sorted(measured, key=lambda path: (sign * metrics[path], -step_of(path)))


def _metric(path: Path) -> float | None:
    try:
        return json.loads((path / META).read_text())["metric"]
    except (ValueError, KeyError, TypeError):  # damaged: it is no best one, and a save must not fail over it
        return None
