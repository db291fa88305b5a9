"""Not outliving the process that one works for, however that ends; the kernel sees to it. Linux only, elsewhere nothing."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
# Loaded now: between fork and exec (`die_with` as preexec_fn) a loader's lock may be held by a thread that is no more.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with(parent: int, number: signal.Signals) -> None:
    """From now on this process gets `number` when its parent is gone; at once if that has happened already.

    Args: parent: the process that should be our parent.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            os.kill(os.getpid(), number)
