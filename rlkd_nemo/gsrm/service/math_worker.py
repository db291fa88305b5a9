"""math-verify in a process of its own: JSON lines [left, right] in, true or false out.

It wants a main thread (it sets an alarm), and some inputs keep a computer algebra system busy for ever: whoever started
this process ends it when it takes too long, and the kernel does where that one is gone.
"""

from __future__ import annotations

import json
import signal
import sys

_LONGEST_S = 600  # for one pair; far more than anyone waits
# Ctrl-C and Slurm's signals reach every process of a job. They are meant for whoever started this one, and who still wants
# answers while it saves; this one ends with its input.
_NOT_FOR_US = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def main() -> None:
    """Answers until its input ends; says `ready` when the libraries are loaded."""
    for number in _NOT_FOR_US:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, in the middle of a library's loop too
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


if __name__ == "__main__":
    main()
