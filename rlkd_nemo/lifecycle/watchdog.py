"""No wait without an end: a phase that makes no progress ends this process with the stacks of all its threads.

Loops say that they get on with `mark` (a micro-batch, a token of every row); `deadline` bounds the silence between
marks. A rank that waits for a slower one makes no marks of its own, so where ranks hear of one another
(lifecycle/heartbeat.py) only the silence of the whole job counts.

Not covered: a hang that holds Python's lock longer than `BACKSTOP_S` past the deadline ends with stacks but without the
line that names the phase, since only faulthandler's own thread still runs then. That thread's clock goes on while a
process is suspended: one that is, for longer than its deadline and `BACKSTOP_S`, ends when it is resumed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, NoReturn, Protocol

from rlkd_nemo import log
from rlkd_nemo.errors import EXIT_ERROR
from rlkd_nemo.launch import rank

BACKSTOP_S = 15.0


class Progress(NamedTuple):
    """The newest mark of this process: how many there were, when (monotonic seconds), and its words."""

    marks: int
    at: float
    what: str


class Job(Protocol):
    """The other ranks, as far as this one hears of them."""

    linger_s: float  # so long they need to hear a verdict

    def silence(self) -> float:
        """Seconds since any rank made a mark."""

    def table(self) -> str:
        """Where the ranks are."""

    def tell(self, message: str) -> None:
        """Leave a verdict, so that each rank shows its stacks before it ends."""


class _Watch:
    """One deadline in force."""

    def __init__(self, seconds: float, what: str) -> None:
        self.seconds, self.what = seconds, what
        self.started = time.monotonic()
        self.end = self.started + seconds
        self.timer: threading.Timer | None = None


_watches: list[_Watch] = []
# Timers come back on threads of their own, and faulthandler has one timer for all deadlines.
_lock = threading.RLock()
_progress = Progress(0, time.monotonic(), "")
# What a heartbeat knows of the other ranks (`listen`).
_job: Job | None = None


def mark(what: str) -> None:
    """This process got on: every deadline in force starts anew. Costs about as much as looking at the clock."""
    global _progress
    _progress = Progress(_progress.marks + 1, time.monotonic(), what)


def progress() -> Progress:
    """The newest mark, named with the innermost phase it belongs to."""
    phase = _watches[-1].what if _watches else "no phase"
    return _progress._replace(what=f"{phase}: {_progress.what}" if _progress.what else phase)


def listen(job: Job | None) -> None:
    """From now on deadlines count the silence of the job instead of this process's; None: as before."""
    global _job
    _job = job


@contextmanager
def deadline(seconds: float, what: str) -> Iterator[None]:
    """End this process, with a message and all stacks on stderr, if the block makes no mark for `seconds`.

    Deadlines nest; each names its own phase. The exit code is 1: the launcher ends the other ranks.
    """
    watch = _Watch(seconds, what)
    mark("")  # entering a phase is progress too
    with _lock:
        _watches.append(watch)
        _start(watch, seconds)
    try:
        yield
    finally:
        mark("")
        with _lock:
            _watches.remove(watch)
            if watch.timer is not None:
                watch.timer.cancel()
            _arm()


def _start(watch: _Watch, seconds: float) -> None:
    watch.end = time.monotonic() + seconds
    watch.timer = threading.Timer(seconds, _check, args=(watch,))
    watch.timer.daemon = True
    watch.timer.start()
    _arm()


def _arm() -> None:
    # faulthandler has one timer for the whole process: it follows the earliest deadline.
    if _watches and sys.__stderr__ is not None:
        left = max(min(watch.end for watch in _watches) - time.monotonic(), 0.0) + BACKSTOP_S
        faulthandler.dump_traceback_later(left, exit=True, file=sys.__stderr__)
    else:
        faulthandler.cancel_dump_traceback_later()


def _check(watch: _Watch) -> None:
    job = _job  # the main thread may end the heartbeat meanwhile
    with _lock:
        if watch not in _watches:
            return
        silence = time.monotonic() - max(watch.started, _progress.at)
        if job is not None:
            silence = min(silence, job.silence())
        left = watch.seconds - silence
        if left > 0:
            _start(watch, max(left, 0.01))
            return
    last = f" (the last was {_progress.what!r})" if _progress.what else ""
    where = f" Where the ranks are: {job.table()}." if job is not None else ""
    end(
        f"{watch.what} took longer than {watch.seconds:g} s without a sign of progress{last}; another rank may be gone."
        f"{where} The stacks of all threads follow; raise trainer.watchdog_s if it only needs more time"
    )


def end(message: str, *, tell: bool = True) -> NoReturn:
    """End this process with code 1: `message`, its last log lines and all stacks on stderr, the message reported.

    The words come first, and the process stays until the others can have spoken too: the end of one rank breaks the
    connections of all, and a main thread that fails for it would otherwise end its process before the stacks are out.

    Args: tell: the other ranks have not heard it yet; each shows its stacks before it ends.
    """
    rank.ending.acquire()  # for good: a second one that ends this process has nothing to add
    job = _job
    message = f"rank {os.environ.get('RANK', '0')}: {message}"
    try:
        # A full disk, or a terminal that is gone: whoever can still hear it does.
        with contextlib.suppress(OSError, ValueError):
            if sys.__stderr__ is not None:
                lines = "".join(f"  {line}\n" for line in log.last_lines())
                words = f"{message}\n" + (f"its last log lines:\n{lines}" if lines else "")
                sys.__stderr__.write(words + _stacks())
                sys.__stderr__.flush()
        with contextlib.suppress(OSError, ValueError):
            rank.report(EXIT_ERROR, message, deliberate=True)
        if job is not None:
            if tell:
                job.tell(message)
            time.sleep(job.linger_s)
    finally:  # whatever it was must not keep the process
        os._exit(EXIT_ERROR)


def _stacks() -> str:
    """The stacks of all threads. In memory: faulthandler writes word by word, and ranks end at the same moment."""
    with os.fdopen(os.memfd_create("stacks"), "w+b") as file:
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")
