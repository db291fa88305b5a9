"""The rank's side of a launch: ready for signals, gone with its launcher, and an end that the launcher can read.

Without our launcher (torchrun, srun, a single process) the same calls work: there is nobody to report to, so the
message goes to stderr.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO

from rlkd_nemo import log
from rlkd_nemo.errors import EXIT_DONE, EXIT_ERROR, EXIT_INPUT, EXIT_PREEMPTED, RlkdError
from rlkd_nemo.launch import extras
from rlkd_nemo.launch.parent import die_with
from rlkd_nemo.lifecycle import signals

# Set by launch/local.py: where ranks report, and the process they must not outlive.
REPORTS, LAUNCHER = "RLKD_REPORTS", "RLKD_LAUNCHER_PID"
TRACEBACK = "RLKD_TRACEBACK"
# Files of a rank among the reports: what it is doing (lifecycle/heartbeat.py), and its stacks when it is asked for them.
BEAT, STACKS, TELL_STACKS = ".beat", ".stacks", signal.SIGUSR2
# Left there by a launcher that cannot wait for ranks to be ready (slurm/common.sh) before it signals them.
STOP = "stop"

_code: int | None = None  # what `leave` was given
_stacks: TextIO | None = None  # open as long as the process: faulthandler writes to it from a signal
# Taken for good by whoever ends this process from another thread (lifecycle/watchdog.py); `leave` lets it, for so long.
ending = threading.Lock()
_ENDING_S = 10.0
# A main thread that fails and a heartbeat that ends the process may report at the same moment.
_reporting = threading.Lock()


def enter() -> None:
    """Tie this rank to its launcher, catch signals, and say that it is ready for them."""
    if os.environ.get(LAUNCHER):
        die_with(int(os.environ[LAUNCHER]), signal.SIGKILL)
    signals.install()
    # Registered before any library is imported, so that it runs after all that they registered.
    atexit.register(_end_at_once)
    if os.environ.get(REPORTS):
        global _stacks
        _stacks = (Path(os.environ[REPORTS]) / f"{_rank()}{STACKS}").open("w")
        faulthandler.register(TELL_STACKS, file=_stacks, all_threads=True)
        (Path(os.environ[REPORTS]) / f"{_rank()}.ready").write_text(str(os.getpid()))
        if (Path(os.environ[REPORTS]) / STOP).exists():
            signals.note()  # asked before this rank could hear a signal


def run(main: Callable[[Any], Any], cfg: Any) -> int:
    """Call `main(cfg)` as this rank and report how it ended. Returns the exit code."""
    log.configure(Path(sys.argv[0]).stem, _rank())
    try:
        main(cfg)
    except RlkdError as error:
        shown = traceback.format_exc() if os.environ.get(TRACEBACK) else str(error)
        report(error.exit_code, shown, deliberate=True)
        return error.exit_code
    except ModuleNotFoundError as error:
        told = None if os.environ.get(TRACEBACK) else extras.advice(error)
        report(EXIT_INPUT if told else EXIT_ERROR, told or traceback.format_exc(), deliberate=bool(told))
        return EXIT_INPUT if told else EXIT_ERROR
    except KeyboardInterrupt:
        report(EXIT_ERROR, "interrupted a second time: not saved", deliberate=True)
        return EXIT_ERROR
    except Exception:  # noqa: BLE001  (whatever it was, the launcher must hear of it)
        report(EXIT_ERROR, traceback.format_exc())
        return EXIT_ERROR
    report(EXIT_DONE, "")
    return EXIT_DONE


def report(code: int, message: str, *, deliberate: bool = False) -> None:
    """Leave code and message for the launcher; without one, say it on stderr.

    Args: deliberate: the message explains itself; else it is a traceback or a last word.
    """
    folder = os.environ.get(REPORTS)
    if not folder:
        if message:
            sys.stderr.write(
                f"rank {_rank()}: {message.rstrip()}\n" if "RANK" in os.environ else f"{message.rstrip()}\n"
            )
        return
    with _reporting:
        if (Path(folder) / f"{_rank()}.json").exists():
            return  # the first word is the cause: what fails while this rank is ended follows from it
        words = {"code": code, "message": message, "deliberate": deliberate, "time": time.time()}
        partial = Path(folder) / f"{_rank()}.partial"
        partial.write_text(json.dumps(words))
        partial.replace(Path(folder) / f"{_rank()}.json")


def leave_beat(stage: str) -> None:
    """Leave for the launcher what this rank is doing and its last log lines: its last words, should it be killed."""
    folder = os.environ.get(REPORTS)
    if folder:
        partial = Path(folder) / f"{_rank()}{BEAT}.partial"
        # A full temporary disk costs the last words, not the job.
        with contextlib.suppress(OSError):
            partial.write_text(json.dumps({"stage": stage, "log": log.last_lines()}))
            partial.replace(Path(folder) / f"{_rank()}{BEAT}")


def leave(code: int) -> NoReturn:
    """End this process with `code`.

    After a failure at once and not by `sys.exit`: with a peer gone, exit handlers may wait for it. Else once the exit
    handlers have run: taking torch's modules apart would keep a preempted job for seconds more.
    """
    global _code
    _code = code
    logging.shutdown()
    _flush()
    if code in (EXIT_DONE, EXIT_PREEMPTED):
        sys.exit(code)
    ending.acquire(timeout=_ENDING_S)
    os._exit(code)


def _end_at_once() -> None:
    if _code is not None:
        _flush()
        os._exit(_code)


def _flush() -> None:
    # Whoever read this has gone (`| head`), or the disk is full: that costs the words, not the code.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))
