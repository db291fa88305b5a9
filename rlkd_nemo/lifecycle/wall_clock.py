"""When the time of a job is up, and how long before that it has to stop so that it can still save.

The end is the earlier of Slurm's own (SLURM_JOB_END_TIME, seconds since 1970, which sbatch and srun set from Slurm 22.05
on) and `exp_manager.max_time_per_run` after the start. The start is the allocation's (SLURM_JOB_START_TIME) where Slurm
tells it: what was spent before Python started counts; else it is this process's.

Each rank reads its own clock; the caller joins their answers, so that clocks that differ still give one decision.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

from rlkd_nemo.config.duration import seconds
from rlkd_nemo.errors import ConfigError

log = logging.getLogger(__name__)

# Room for a step longer than any before, and for a file system slower than before.
STEP_FACTOR, SAVE_FACTOR = 1.5, 2.0


class WallClock:
    """Learns how long steps and saves take, and says when another step might not fit any more.

    Args:
        limit: `exp_manager.max_time_per_run`, DD:HH:MM:SS, or None.
        margin_s: time kept free before the end; None: learned, 1.5 x the longest step (with its validation and save)
            plus 2 x the longest save, or as long as a step while none was seen.
        environment: where Slurm's variables are looked up.
    Raises: ValueError when `limit` cannot be read; ConfigError for a margin before an end that there is not.
    """

    def __init__(
        self, limit: str | None, margin_s: float | None = None, *, environment: Mapping[str, str] = os.environ
    ) -> None:
        ends = [_seconds_of(environment, "SLURM_JOB_END_TIME")]
        if limit is not None:
            start = _seconds_of(environment, "SLURM_JOB_START_TIME") or _process_start()
            ends.append(start + seconds(limit))
        self.end = min((end for end in ends if end is not None), default=None)
        if self.end is None and margin_s is not None:
            # Not among the rules: Slurm tells a job's end to the job, not to the login node that checks its config.
            raise ConfigError(
                f"exp_manager.stop_margin_s={margin_s} keeps time free before the end, but there is no end: wanted "
                "exp_manager.max_time_per_run, or a Slurm job (SLURM_JOB_END_TIME); set one, or stop_margin_s=null"
            )
        self._fixed = margin_s
        self._last = time.monotonic()
        self._step_s = 0.0
        self._save_s: float | None = None
        self._said = False

    @property
    def margin_s(self) -> float:
        """Seconds before the end at which `due` becomes true."""
        if self._fixed is not None:
            return self._fixed
        return STEP_FACTOR * self._step_s + SAVE_FACTOR * (self._step_s if self._save_s is None else self._save_s)

    def start(self) -> None:
        """The first step begins now: what came before was no step."""
        self._last = time.monotonic()

    def step_done(self) -> None:
        """Call once after every step; all since the last call was one step."""
        now = time.monotonic()
        self._step_s, self._last = max(self._step_s, now - self._last), now

    def saved(self, spent_s: float) -> None:
        """A save took so long."""
        self._save_s = max(self._save_s or 0.0, spent_s)

    def due(self) -> bool:
        """Is it time to save and stop?"""
        if self.end is None:
            return False
        left = self.end - time.time()
        if left > self.margin_s:
            return False
        if not self._said:
            self._said = True
            log.info("%.0f s are left of the job's time and %.0f s are kept for saving: stopping", left, self.margin_s)
        return True


def _seconds_of(environment: Mapping[str, str], name: str) -> float | None:
    value = environment.get(name)
    if not value:
        return None
    if not value.isdigit():
        log.warning("%s=%r is no number of seconds and is not used", name, value)
        return None
    return float(value)


def _process_start() -> float:
    """Seconds since 1970 at which this process began; now, where the system does not tell."""
    try:
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return time.time()
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")
