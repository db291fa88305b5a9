"""metrics.jsonl: one JSON object a step, the record that mirrors and reports are made from."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlkd_nemo.config.schema import ExpManager
from rlkd_nemo.errors import InputError
from rlkd_nemo.report.files import dumps, write_atomically
from rlkd_nemo.report.sinks import Sink, open_sinks

log = logging.getLogger(__name__)

NON_FINITE = "metrics/non_finite_count"


class MetricsLog:
    """Writes `{"step": n, "time": unix seconds, "area/quantity_unit": value, ...}`, a line a step, flushed at once.

    A number that is not finite is written as null, because NaN is not JSON; how many there were stands in
    `metrics/non_finite_count` of that line, and the mirrors get neither.

    Args:
        run_dir: the run's folder, made if missing.
        settings: which mirrors to write (`exp_manager`); None: none.
        start_step: steps done before this process. Lines of later steps, left by an interrupted one, are dropped, since
            those steps are run again; at 0 nothing has been done and every line goes.
    Raises: ConfigError when the package of a mirror is missing; InputError when an existing file is not ours.
    """

    def __init__(self, run_dir: str | Path, settings: ExpManager | None = None, start_step: int = 0) -> None:
        directory = Path(run_dir)
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "metrics.jsonl"
        self._last = start_step if start_step else -1
        _keep_until(self.path, start_step)
        self._warned: set[str] = set()
        # Mirrors first: a missing package must not leave an open file behind.
        self._sinks: list[Sink] = open_sinks(directory, settings, start_step) if settings is not None else []
        self._file = self.path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one step. Raises: ValueError if steps do not increase, or for the names `step` and `time`."""
        if step <= self._last:
            raise ValueError(f"step {step} was logged after step {self._last}; steps must increase")
        if taken := {"step", "time"} & metrics.keys():
            raise ValueError(f"metric names {sorted(taken)} are taken by the line itself; wanted area/quantity")
        self._last = step
        values = {name: float(value) for name, value in metrics.items()}
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        line: dict[str, Any] = {"step": step, "time": time.time(), **values}
        if broken:
            line[NON_FINITE] = len(broken)
            if fresh := [name for name in broken if name not in self._warned]:
                self._warned.update(fresh)
                log.warning("step %d: not finite, written as null: %s (said once a name)", step, ", ".join(fresh))
        self._file.write(dumps(line) + "\n")
        self._file.flush()
        finite = {name: value for name, value in line.items() if name not in ("step", "time", *broken)}
        for sink in self._sinks:
            sink.log(step, finite)

    def close(self) -> None:
        """Close the file and the mirrors; a second call does nothing."""
        self._file.close()
        while self._sinks:
            self._sinks.pop().close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def read(run_dir: str | Path) -> list[dict[str, Any]]:
    """Lines of run_dir/metrics.jsonl, steps ascending; a last line torn by a kill is left out.

    Raises: InputError when the file is missing, or when a line other than the last is broken.
    """
    path = Path(run_dir) / "metrics.jsonl"
    if not path.is_file():
        raise InputError(f"{path} does not exist; wanted a run directory with the metrics of a run")
    return _parse(path)


def _keep_until(path: Path, step: int) -> None:
    """Drop lines of later steps and a torn end, which the next line would otherwise be glued to."""
    if not path.exists():
        return
    lines = _parse(path)
    kept = [line for line in lines if line["step"] <= step] if step else []
    if len(kept) < len(lines):
        log.info("%s: %d lines after step %d are dropped, their steps run again", path, len(lines) - len(kept), step)
    write_atomically(path, "".join(dumps(line) + "\n" for line in kept))


def _parse(path: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    *whole, rest = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, text in enumerate(whole, start=1):
        try:
            line = json.loads(text)
            if not isinstance(line, dict) or not isinstance(line.get("step"), int):
                raise ValueError("no object with an integer `step`")
        except ValueError as err:
            raise InputError(f"{path}:{number}: not a line of metrics ({err}): {text[:80]!r}") from err
        lines.append(line)
    if rest:
        log.warning("%s: the last line has no end and is left out (a process was killed while writing)", path)
    return lines
