"""Ranks on this machine: started together, told to stop together, none left behind.

Each rank is a direct child with the variables that torchrun would set (RANK, WORLD_SIZE, MASTER_ADDR, ...), so that a
script runs alike under both. Not torchrun itself: it turns every failure into exit code 1, kills 30 s after a signal
whether or not the ranks are still saving, and costs a process that imports torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rlkd_nemo.errors import EXIT_DONE, EXIT_ERROR, EXIT_PREEMPTED
from rlkd_nemo.launch.rank import BEAT, LAUNCHER, REPORTS, STACKS, TELL_STACKS

# After one rank failed the others get so long to end by themselves (a lost peer is noticed at once over gloo).
GRACE_S = 15.0
_POLL_S = 0.05
_FIRST_PORT = 20000
# At most so long to write their stacks, those that are ended; a rank that is stopped never does.
_STACKS_S = 3.0
# They are written word by word: done when nothing came for so long. On a busy machine there are pauses between words.
_QUIET_S = 0.5


@dataclass(frozen=True)
class Ended:
    """How one rank ended. `code`: exit status, negative for a signal; `stacks`: where it was when we ended it."""

    rank: int
    code: int
    killed_by_us: bool
    message: str
    deliberate: bool
    time: float
    stacks: str = ""


def run_ranks(script: str | Path, argv: Sequence[str], num_ranks: int, *, grace_s: float = GRACE_S) -> int:
    """Run `script argv...` on `num_ranks` ranks of this machine and wait for them.

    SIGINT, SIGTERM and SIGUSR1 go to every rank, which saves and stops at the end of its step; a second SIGINT kills.
    Messages of the ranks' errors are printed once, the cause first.

    Returns: 0, or the exit code of the failure that came first (1 when a rank was killed).
    """
    folder = Path(tempfile.mkdtemp(prefix="rlkd-ranks-"))
    held = _hold_port()
    group = _Group(script, argv, num_ranks, folder, held.number)
    # Handlers before children: a signal between the two would leave them behind.
    previous = {number: signal.signal(number, group.on_signal) for number in group.forwarded}
    try:
        group.start()
        return verdict(group.wait(grace_s))
    finally:
        group.kill()
        for number, handler in previous.items():
            signal.signal(number, handler)
        held.by.close()
        shutil.rmtree(folder, ignore_errors=True)


class _Group:
    """The rank processes, each the leader of its own session: its children end with it."""

    forwarded = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, script: str | Path, argv: Sequence[str], num_ranks: int, folder: Path, port: int) -> None:
        self.command = [sys.executable, str(script), *argv]
        self.num_ranks, self.folder, self.port = num_ranks, folder, port
        self.processes: list[subprocess.Popen[bytes]] = []
        self.killed: set[int] = set()
        self.wanted: list[int] = []
        self.told: set[tuple[int, int]] = set()
        self.give_up = False

    def on_signal(self, number: int, frame: object) -> None:
        """Note it; `wait` acts (a handler may interrupt a lock that killing and waiting need)."""
        name = signal.Signals(number).name
        if number == signal.SIGINT and number in self.wanted:
            self.give_up = True
        elif number not in self.wanted:
            self.wanted.append(number)
            sys.stderr.write(f"{name}: the ranks were asked to save and stop; Ctrl-C again ends them at once\n")

    def start(self) -> None:
        """All ranks, with what torchrun would have put into their environment."""
        shared = {
            "WORLD_SIZE": str(self.num_ranks),
            "LOCAL_WORLD_SIZE": str(self.num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.port),
            # More ranks than one share the cores; without this each would start a thread for every core.
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            REPORTS: str(self.folder),
            LAUNCHER: str(os.getpid()),
        }
        for rank in range(self.num_ranks):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
            self.processes.append(
                subprocess.Popen(self.command, env={**os.environ, **shared, **place}, start_new_session=True)
            )

    def wait(self, grace_s: float) -> list[Ended]:
        """Until every rank has ended; after the first failure the others have `grace_s` left."""
        failed_at: float | None = None
        # A list: every process is polled each time, which is what sets its returncode.
        while None in [process.poll() for process in self.processes]:
            self._forward()
            # A rank that was preempted has saved; the others are about to end as well and may still write a report.
            fine = (None, EXIT_DONE, EXIT_PREEMPTED)
            if failed_at is None and any(process.returncode not in fine for process in self.processes):
                failed_at = time.monotonic()
            if self.give_up or (failed_at is not None and time.monotonic() - failed_at > grace_s):
                self._ask_for_stacks()
                self.kill()
            time.sleep(_POLL_S)
        return [self._ended(rank) for rank in range(self.num_ranks)]

    def kill(self) -> None:
        """End what still runs, children of ended ranks included."""
        for rank, process in enumerate(self.processes):
            if process.poll() is None:
                self.killed.add(rank)
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # all gone, and perhaps the number is another's by now
                continue
        for process in self.processes:
            process.wait()

    def _ask_for_stacks(self) -> None:
        asked = []
        for rank, process in enumerate(self.processes):
            # Before a rank is ready the signal would kill it; it would be killed next in any case.
            if process.poll() is None and (self.folder / f"{rank}.ready").exists():
                process.send_signal(TELL_STACKS)
                asked.append(self.folder / f"{rank}{STACKS}")
        began = news = time.monotonic()
        before = [0] * len(asked)
        while asked and time.monotonic() - began < _STACKS_S:
            time.sleep(_POLL_S)
            written = [file.stat().st_size for file in asked]
            if written != before:
                before, news = written, time.monotonic()
            elif all(written) and time.monotonic() - news > _QUIET_S:
                return

    def _forward(self) -> None:
        for number in self.wanted:
            for rank, process in enumerate(self.processes):
                # Before a rank is ready the signal would kill it instead of being noted; it gets it as soon as it is.
                if (rank, number) not in self.told and (self.folder / f"{rank}.ready").exists():
                    self.told.add((rank, number))
                    process.send_signal(number)

    def _ended(self, rank: int) -> Ended:
        code = self.processes[rank].returncode
        try:
            words = json.loads((self.folder / f"{rank}.json").read_text())
        except FileNotFoundError:
            died = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            words = {
                "message": f"rank {rank} {died} without a word{self._last_words(rank)}", "deliberate": True, "time": 0.0,
            }  # fmt: skip
        try:
            stacks = (self.folder / f"{rank}{STACKS}").read_text()
        except FileNotFoundError:
            stacks = ""
        return Ended(rank, code, rank in self.killed, words["message"], words["deliberate"], words["time"], stacks)

    def _last_words(self, rank: int) -> str:
        """What its last heartbeat said it was doing."""
        try:
            beat = json.loads((self.folder / f"{rank}{BEAT}").read_text())
        except FileNotFoundError:
            return ""
        lines = "".join(f"\n  {line}" for line in beat["log"])
        return f", in {beat['stage']}" + (f"; its last log lines:{lines}" if lines else "")


def verdict(ended: list[Ended]) -> int:
    """Say on stderr what went wrong, each thing once, and choose the exit code."""
    failed = [end for end in ended if end.code]
    if not failed:
        return EXIT_DONE
    # A rank that we killed only waited for the others; one that died without a word (time 0) is the cause.
    own = sorted((end for end in failed if not end.killed_by_us), key=lambda end: end.time)
    if not own:
        sys.stderr.write("the ranks were ended by a second interrupt; what was saved before stays\n")
        return EXIT_ERROR
    cause = own[0]
    sys.stderr.write(
        f"{cause.message.rstrip()}\n" if cause.deliberate else f"rank {cause.rank}: {cause.message.rstrip()}\n"
    )
    for end in own[1:]:
        if end.message != cause.message:
            last = end.message.rstrip() or f"code {end.code}"
            if cause.time:
                last = last.splitlines()[-1]  # whoever died without a word left no other trace than what peers saw
            sys.stderr.write(f"rank {end.rank} failed after that: {last}\n")
    waiting = [str(end.rank) for end in failed if end.killed_by_us]
    if waiting:
        sys.stderr.write(f"rank {', '.join(waiting)} still waited for the others and was ended\n")
    for end in failed:
        if end.killed_by_us and end.stacks:
            sys.stderr.write(f"stacks of rank {end.rank} when it was ended:\n{end.stacks.rstrip()}\n")
    return cause.code if cause.code > 0 else EXIT_ERROR


class _Port(NamedTuple):
    """A port of ours as long as the socket is open."""

    number: int
    by: socket.socket


def _hold_port() -> _Port:
    """A port that nobody uses, out of those that the system hands out to nobody, kept from other launchers.

    Seconds pass until rank 0 has imported torch and takes it. By then a port that the system gave us may be the end of
    another process's connection: on a busy machine ranks of other jobs open many.
    """
    held, number = socket.socket(), _first_handed_out() - _FIRST_PORT
    for _ in range(64 if number > 0 else 0):
        with contextlib.suppress(OSError):
            held.bind(("", _FIRST_PORT + secrets.randbelow(number)))
            break
    else:
        held.bind(("", 0))
    port = held.getsockname()[1]
    # Bound and never listened on, it refuses others like us; said after binding, this lets one in that asks to share, as
    # the ranks' store does. Where a system has no such difference the port is only free, not held.
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with socket.socket() as rank:
        rank.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            rank.bind(("", port))
            rank.listen()
        except OSError:
            held.close()
    return _Port(port, held)


def _free_port() -> int:
    port = _hold_port()
    port.by.close()
    return port.number


def _first_handed_out() -> int:
    """Where the range begins out of which the system picks ports by itself."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        return 32768  # Linux's own default; elsewhere it is higher
