"""Deadlines for phases that can hang (a collective whose peer is gone): stacks of all threads, then the process ends.

Not covered: a hang that holds Python's lock longer than `BACKSTOP_S` past the deadline ends with stacks but without the
line that names the phase, since only faulthandler's own thread still runs then.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rlkd_nemo.errors import EXIT_ERROR
from rlkd_nemo.launch import rank

BACKSTOP_S = 5.0

_ends: list[float] = []


@contextmanager
def deadline(seconds: float, what: str) -> Iterator[None]:
    """End this process, with a message and all stacks on stderr, if the block takes longer than `seconds`.

    Deadlines nest; each names its own phase. The exit code is 1: the launcher ends the other ranks.
    """
    end = time.monotonic() + seconds
    timer = threading.Timer(seconds, _expire, args=(seconds, what))
    timer.daemon = True
    timer.start()
    _ends.append(end)
    _arm()
    try:
        yield
    finally:
        timer.cancel()
        _ends.remove(end)
        _arm()


def _arm() -> None:
    # faulthandler has one timer for the whole process: it follows the earliest deadline.
    if _ends and sys.__stderr__ is not None:
        left = max(min(_ends) - time.monotonic(), 0.0) + BACKSTOP_S
        faulthandler.dump_traceback_later(left, exit=True, file=sys.__stderr__)
    else:
        faulthandler.cancel_dump_traceback_later()


def _expire(seconds: float, what: str) -> None:
    message = (
        f"rank {os.environ.get('RANK', '0')}: {what} took longer than {seconds:g} s; another rank may be gone. "
        "The stacks of all threads follow; raise trainer.watchdog_s if it only needs more time"
    )
    stderr = sys.__stderr__
    if stderr is not None:
        stderr.write(f"{message}\n")
        stderr.flush()
        faulthandler.dump_traceback(file=stderr, all_threads=True)
    rank.report(EXIT_ERROR, message)
    os._exit(EXIT_ERROR)
