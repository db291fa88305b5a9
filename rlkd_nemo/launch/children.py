"""Programs that work for this one: started with a log of their own, waited for with a deadline, gone when it goes.

Each leads a session of its own, so that its children end with it and a Ctrl-C at the terminal reaches it through us.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from rlkd_nemo.errors import EXIT_PREEMPTED, Preempted, RlkdError
from rlkd_nemo.launch.parent import die_with

log = logging.getLogger(__name__)
Found = TypeVar("Found")
_POLL_S = 0.1
_NEWS_S = 10.0  # between lines about a program that is still starting
_STOP_S = 30.0  # from SIGTERM to SIGKILL
_TAIL_LINES = 15


class Children:
    """A context: whatever was started in it is ended with it, the last one first, however it is left.

    Args: stop: asked while waiting; when it says so, what runs is told to end and Preempted is raised.
    """

    def __init__(self, stop: Callable[[], bool] = lambda: False) -> None:
        self._stop = stop
        self._running: list[tuple[str, subprocess.Popen[bytes], Path | None]] = []

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, process, _ in reversed(self._running):
            self._end(name, process)
        self._running.clear()

    def start(
        self, name: str, command: Sequence[str], *, log_file: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start `command`. Args: log_file: for its output; None: it shares ours.   env: in place of our environment."""
        output = None
        if log_file is not None:
            log_file.parent.mkdir(parents=True, exist_ok=True)
            output = log_file.open("wb")
        parent = os.getpid()
        try:
            process = subprocess.Popen(
                list(command),
                env=None if env is None else dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=lambda: die_with(parent, signal.SIGTERM),
            )
        except OSError as err:
            raise RlkdError(f"{name} cannot be started: {command[0]}: {err.strerror}") from err
        finally:
            if output is not None:
                output.close()
        self._running.append((name, process, log_file))
        return process

    def run(self, name: str, command: Sequence[str], *, env: Mapping[str, str] | None = None) -> None:
        """Start `command` and wait until it is done. Raises: RlkdError for an exit code other than 0, Preempted."""
        process = self.start(name, command, env=env)
        while process.poll() is None:
            self._check()
            self._others(process)
            time.sleep(_POLL_S)
        self._running = [entry for entry in self._running if entry[1] is not process]
        if process.returncode == EXIT_PREEMPTED:
            raise Preempted(f"{name} was stopped and has saved; the same command goes on from there")
        if process.returncode:
            raise RlkdError(f"{name} {_how(process.returncode)}; its own messages are above")

    def ready(
        self, name: str, process: subprocess.Popen[bytes], check: Callable[[], Found | None], deadline_s: float
    ) -> Found:
        """What `check` finds, as soon as it finds anything.

        Raises: RlkdError with the end of the program's log when it ends first, or finds nothing in time; Preempted.
        """
        began = news = time.monotonic()
        while True:
            found = check()
            if found is not None:
                log.info("%s is ready after %.0f s", name, time.monotonic() - began)
                return found
            now = time.monotonic()
            if process.poll() is not None:
                raise RlkdError(f"{name} {_how(process.returncode)} before it was ready{self._tail(process)}")
            if now - began > deadline_s:
                raise RlkdError(f"{name} was not ready within {deadline_s:g} s{self._tail(process)}")
            if now - news > _NEWS_S:
                news = now
                log.info("waiting for %s: %.0f s, at most %.0f more", name, now - began, deadline_s - (now - began))
            self._check()
            time.sleep(_POLL_S)

    def _check(self) -> None:
        if self._stop():
            raise Preempted("stopped; what was finished is kept, and the same command goes on from there")

    def _others(self, waited_for: subprocess.Popen[bytes]) -> None:
        """A program that others rely on must not end."""
        for name, process, _ in self._running:
            if process is not waited_for and process.poll() is not None:
                raise RlkdError(f"{name} {_how(process.returncode)} while it was needed{self._tail(process)}")

    def _tail(self, process: subprocess.Popen[bytes]) -> str:
        file = next((file for _, other, file in self._running if other is process), None)
        if file is None:
            return ""
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
        return f"; the end of {file}:" + "".join(f"\n  {line}" for line in lines)

    def _end(self, name: str, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                log.warning("%s did not end within %g s and is killed", name, _STOP_S)
        # Whatever is left of its session, a program that ended by itself included.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _how(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
