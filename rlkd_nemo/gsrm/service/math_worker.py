"""math-verify in a process of its own: JSON lines [left, right] in, true or false out.

It wants a main thread (it sets an alarm), and some inputs keep a computer algebra system busy for ever: whoever started
this process ends it when it takes too long, and the kernel does where that one is gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time

_LOOK_S = 1.0
_LONGEST_S = 600  # for one pair; far more than anyone waits


def main() -> None:
    """Answers until its input ends or whoever started it is gone; says `ready` when the libraries are loaded."""
    # A launcher tells every process of a job to stop, and a terminal its whole group: that is for ranks and servers, which
    # still need their answers.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(
        signal.SIGALRM, signal.SIG_DFL
    )  # ends the process even in one long operation, which lets no thread run
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    import logging

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    out, sys.stdout = sys.stdout, sys.stderr

    def answer(value: object) -> None:
        out.write(json.dumps(value) + "\n")
        out.flush()

    def read(text: str) -> list[object]:
        return list(parse(f"${text.strip().strip('$')}$", parsing_timeout=None))

    answer("ready")
    for line in sys.stdin:
        left, right = json.loads(line)
        signal.alarm(_LONGEST_S)
        try:
            first, second = read(left), read(right)
            same = bool(first and second and verify(first, second, timeout_seconds=None))
        except Exception:  # noqa: BLE001 - whatever the libraries stumble over, the texts are not shown to be equal
            same = False
        signal.alarm(0)
        answer(same)


def _end_with(parent: int) -> None:
    # In the middle of a long answer it would not see that its input ended.
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(0)


if __name__ == "__main__":
    main()
