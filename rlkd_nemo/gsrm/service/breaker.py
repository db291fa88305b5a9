"""A circuit breaker: a backend that fails again and again is left alone for a while, then tried with one request."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal


class Breaker:
    """closed (in use) -> open after `failures` in a row -> half_open after `cool_s`: one request decides.

    Each `allow` that answers True is followed by one of `success`, `failure` or `release`.
    """

    def __init__(self, failures: int, cool_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._cool_s, self._clock = failures, cool_s, clock
        self._failed = 0
        self._opened_at: float | None = None
        self._trying = False

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

    def allow(self) -> bool:
        """May a request go out now? In half_open only one at a time may."""
        if self.state == "closed":
            return True
        if self.state == "open" or self._trying:
            return False
        self._trying = True
        return True

    def success(self) -> None:
        """The backend did its part: closed."""
        self._failed, self._opened_at, self._trying = 0, None, False

    def failure(self) -> bool:
        """It did not. True if this opened the breaker."""
        self._failed += 1
        was_open = self._opened_at is not None
        # Late failures of requests sent while it was closed do not prolong the pause.
        if self._trying or (not was_open and self._failed >= self._limit):
            self._opened_at, self._trying = self._clock(), False
            return not was_open
        return False

    def release(self) -> None:
        """The request ended without telling anything about the backend, cancelled for example."""
        self._trying = False
