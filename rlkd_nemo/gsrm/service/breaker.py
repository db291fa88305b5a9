"""A circuit breaker: a backend that fails again and again is left alone for a while, then tried with one request."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal


class Leave:
    """A request's leave to go out, by which its end is told from that of every other."""


class Breaker:
    """closed (in use) -> open after `failures` in a row -> half_open after `cool_s`: one request decides.

    Each leave that `allow` gives is followed by one of `success`, `failure` or `release`.
    """

    def __init__(self, failures: int, cool_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._cool_s, self._clock = failures, cool_s, clock
        self._failed = 0
        self._opened_at: float | None = None
        self._trial: Leave | None = None  # of the one request that tries an endpoint left alone

    @property
    def state(self) -> Literal["closed", "half_open", "open"]:
        """Open turns into half_open by the clock alone."""
        if self._opened_at is None:
            return "closed"
        return "open" if self.retry_after_s > 0 else "half_open"

    @property
    def retry_after_s(self) -> float:
        """Seconds until the next request may go out; 0 unless open."""
        return 0.0 if self._opened_at is None else max(0.0, self._opened_at + self._cool_s - self._clock())

    def allow(self) -> Leave | None:
        """Leave for a request to go out now; None where it may not. In half_open only one at a time may."""
        leave = Leave()
        if self.state == "closed":
            return leave
        if self.state == "open" or self._trial is not None:
            return None
        self._trial = leave
        return leave

    def success(self) -> None:
        """The backend did its part: closed, whoever's request it was."""
        self._failed, self._opened_at, self._trial = 0, None, None

    def failure(self, leave: Leave) -> bool:
        """It did not. True if this opened the breaker."""
        if leave is self._trial:
            self._opened_at, self._trial = self._clock(), None
            return False
        self._failed += 1
        # Late failures of requests sent while it was closed neither prolong the pause nor end another's trial.
        if self._opened_at is None and self._failed >= self._limit:
            self._opened_at = self._clock()
            return True
        return False

    def release(self, leave: Leave) -> None:
        """The request ended without telling anything about the backend, cancelled for example."""
        if leave is self._trial:
            self._trial = None
