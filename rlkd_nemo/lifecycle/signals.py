"""Being asked to stop: a flag that the loop reads at the end of a step, so that it can save first.

The ranks need one answer: the caller takes the maximum of their flags at the end of a step (one all-reduce). A second
SIGINT does not wait for that.
"""

from __future__ import annotations

import logging
import signal
from types import FrameType

log = logging.getLogger(__name__)

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

_received: list[int] = []


def install() -> None:
    """From now on SIGINT, SIGTERM and SIGUSR1 set the flag of `stop_requested`. Main thread only."""
    for number in STOPPING:
        signal.signal(number, _note)


def stop_requested() -> bool:
    """Has this process been asked to stop since `install` or `clear`?"""
    return bool(_received)


def note() -> None:
    """As if a SIGUSR1 had come."""
    _note(signal.SIGUSR1, None)


def clear() -> None:
    """Forget what was received."""
    _received.clear()


def _note(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT and signal.SIGINT in _received:
        raise KeyboardInterrupt
    _received.append(number)
    log.info("%s: stopping after this step, once it is saved", signal.Signals(number).name)
