"""Are two answers mathematically the same? math-verify in a process of its own, under a deadline.

It cannot run in this one: it sets an alarm, which threads may not, and some answers keep a computer algebra system busy for
ever.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import selectors
import subprocess
import sys
import threading
import time
import weakref

from rlkd_nemo.errors import ConfigError, RlkdError
from rlkd_nemo.tasks import answers

log = logging.getLogger(__name__)
_WORKER = "rlkd_nemo.gsrm.service.math_worker"
_START_S = 120.0  # the computer algebra system takes seconds to load, more on a busy machine
_LONGEST = 1000  # characters of an answer; a longer one is no answer


class Verifier:
    """One worker, started when it is first needed, asked by one thread at a time.

    Args: limit_s: for one pair; then the worker is ended, and the pair counts as not shown to be equal. So does one on which
        it dies twice; after a first death the pair is asked again.
    Raises: ConfigError where math-verify is not installed.
    """

    def __init__(self, limit_s: float) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError("task=math needs math-verify, which is not installed: pip install 'rlkd_nemo[gsrm]'")
        self._limit_s = limit_s
        self._worker: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()

    def equal(self, gold: str, found: str) -> bool:
        """Numbers exactly, other answers by math-verify. Raises RlkdError when its process cannot be had."""
        if answers.equal(gold, found):
            return True
        if answers.number(gold) is not None and answers.number(found) is not None:
            return False
        if len(found) > _LONGEST:
            return False
        with self._turn:
            for last in (False, True):
                line = self._ask(gold, found)
                if line:
                    return bool(json.loads(line))
                self._end()
                if line is not None:
                    log.warning(
                        "math-verify gave no verdict within %g s on %r and %r", self._limit_s, gold[:80], found[:80]
                    )
                    break
                # A signal of somebody else's says nothing about the answer; what ends it twice, does.
                if last:
                    log.warning("the process of math-verify died twice on %r and %r", gold[:80], found[:80])
            return False

    def _ask(self, gold: str, found: str) -> bytes | None:
        """The reply; empty when it does not come in time, None when the worker died."""
        worker = self._worker or self._start()
        assert worker.stdin is not None
        try:
            worker.stdin.write(json.dumps([gold, found]).encode() + b"\n")
            worker.stdin.flush()
        except OSError:
            return None
        return _line(worker, self._limit_s)

    def close(self) -> None:
        """End the worker."""
        with self._turn:
            self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        worker = subprocess.Popen(
            [sys.executable, "-m", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        weakref.finalize(self, _kill, worker)
        if (_line(worker, _START_S) or b"").strip() != b'"ready"':
            _kill(worker)
            raise RlkdError(
                f"the process of math-verify did not start within {_START_S:g} s (python -m {_WORKER} shows why); "
                "answers of task=math cannot be verified"
            )
        self._worker = worker
        return worker

    def _end(self) -> None:
        if self._worker is not None:
            _kill(self._worker)
        self._worker = None


def _line(worker: subprocess.Popen[bytes], limit_s: float) -> bytes | None:
    """The next line; empty when it does not come in time, None when none can come any more."""
    assert worker.stdout is not None
    until = time.monotonic() + limit_s
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(worker.stdout, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, until - time.monotonic())):
                return b""
            # Unbuffered: one reply a question, nothing is left over.
            piece = worker.stdout.read1(4096)  # type: ignore[attr-defined]
            if not piece:
                return None
            line += piece
    return line


def _kill(worker: subprocess.Popen[bytes]) -> None:
    if worker.poll() is None:
        worker.kill()
        worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was not sent went with the process
                pipe.close()
