"""Ranks hear of one another: a rank that dies or stops is noticed in seconds, whatever the others wait for.

Each rank has a thread with its own connection to the store of the process groups. Every `PERIOD_S` it writes a beat
(how many marks of progress it made, where it is) and reads its neighbour's; rank 0 reads all and writes down how the
job stands. A neighbour without a beat for `silence_s` (killed, stopped, or holding Python's lock) ends the job; so does
a store that does not answer. The rank that notices leaves its verdict in the store, so that every rank shows its stacks
before it ends. A rank that lives but makes no progress is the business of lifecycle/watchdog.py, which asks here how
long the whole job has been silent.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import socket
import threading
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from rlkd_nemo.launch.rank import leave_beat
from rlkd_nemo.lifecycle import watchdog

log = logging.getLogger(__name__)

PERIOD_S = 2.0
_ENDED = "ended"
# At the end of a job that was told to stop every moment counts: rank 0 asks so often whether the others have left.
_LEAVING_S = 0.01
# Nobody watches yet: a store that is busy with the connections of many ranks has time.
_CONNECT_S = 60.0
# Even a starved peer has heard a verdict by then; launchers give more before they kill.
_LINGER_S = 5.0


class Heartbeat:
    """The thread of one rank.

    Args:
        store: where beats go; a connection of its own, since one store serves one caller at a time.
        silence_s: seconds without a beat after which a rank counts as gone.
    """

    def __init__(
        self, store: dist.Store, rank: int, size: int, *, silence_s: float, period_s: float = PERIOD_S
    ) -> None:
        self.store, self.rank, self.size = store, rank, size
        self.silence_s, self.period_s = silence_s, period_s
        self._prefix = _prefix()
        self.linger_s = max(_LINGER_S, 2.5 * period_s)
        self._beats = 0
        self._job: dict[str, Any] = {}
        now = time.monotonic()
        self._seen: dict[str, tuple[object, float]] = {"job": (None, now), "neighbour": (None, now), "store": (0, now)}
        self._awake = {"_run": now, "_watch_store": now}
        self._stop = threading.Event()
        # Two: a request to a store whose process is stopped blocks for ever, whatever time-out it was given.
        self._threads = [
            threading.Thread(target=target, name=f"heartbeat-{target.__name__}", daemon=True)
            for target in (self._run, self._watch_store)
        ]

    def start(self) -> None:
        """Begin; the deadlines of this process count the job's silence from now on."""
        leave_beat(watchdog.progress().what)
        self._write(str(self.rank), self._state(done=False))
        watchdog.listen(self)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Leave in good order: the neighbour is told not to wait for beats any more. Safe to call twice."""
        if not self._stop.is_set():
            self._stop.set()
            self._threads[0].join(timeout=4 * self.period_s + 1)
            watchdog.listen(None)

    def silence(self) -> float:
        """Seconds since any rank made a mark."""
        now = time.monotonic()
        if self._slept(max(self._awake.values()), now):
            return 0.0  # a deadline was the first to wake up; `_forgive_sleep` comes next
        return now - self._seen["job"][1]

    def table(self) -> str:
        """Where the ranks are, as rank 0 last saw them."""
        places: dict[str, list[str]] = {}
        for rank, what in enumerate(self._job.get("where", ())):
            places.setdefault(what, []).append(str(rank))
        return "; ".join(f"rank {', '.join(ranks)}: {what}" for what, ranks in places.items()) or "not known yet"

    def tell(self, message: str) -> None:
        """Leave the verdict on the job; without the store nobody hears it."""
        # On a thread: where the store's process is stopped the request never comes back.
        teller = threading.Thread(target=self._try_to_write, args=("verdict", {"message": message}), daemon=True)
        teller.start()
        teller.join(self.period_s)

    def _try_to_write(self, key: str, value: dict[str, Any]) -> None:
        with contextlib.suppress(RuntimeError):
            self._write(key, value)

    def _run(self) -> None:
        while not self._stop.wait(self.period_s):
            self._beat(self._forgive_sleep("_run"))
        try:
            self._write(str(self.rank), self._state(done=True))
            if self.rank == 0:
                self._survey()
                self._wait_for_the_others()
        except RuntimeError:
            log.debug("the store had gone before this rank's last beat")

    def _beat(self, now: float) -> None:
        """Args: now: when it began, awake: this process may be suspended between a question and its answer."""
        leave_beat(watchdog.progress().what)
        try:
            self._write(str(self.rank), self._state(done=False))
            if self.rank == 0:
                self._survey()
            job, verdict = self._read("job"), self._read("verdict")
            neighbour = self._read(str((self.rank + 1) % self.size))
        except RuntimeError:  # what the store's client raises for a connection that failed; `_watch_store` counts
            return
        self._seen["store"] = (0, time.monotonic())
        if verdict is not None:
            watchdog.end(f"ends with the others: {verdict['message']}", tell=False)
        if job is not None:
            self._job = job
            self._unchanged("job", (job["marks"], tuple(job["where"])), now)
        self._hear(neighbour, now)

    def _watch_store(self) -> None:
        while not self._stop.wait(self.period_s):
            now = self._forgive_sleep("_watch_store")
            if not self._over() and self._unchanged("store", 0, now):
                silence = self._silence("store")
                watchdog.end(
                    f"rank 0, which holds the store of the ranks, has not answered for {silence}: "
                    "killed, stopped or cut off"
                )

    def _wait_for_the_others(self) -> None:
        """The store goes with rank 0: the others read first that it ended in good order."""
        until = time.monotonic() + 3 * self.period_s
        left = list(range(1, self.size))
        while time.monotonic() < until:
            left = [rank for rank in left if not self._has_ended(rank)]
            if not left:
                break
            time.sleep(_LEAVING_S)

    def _has_ended(self, rank: int) -> bool:
        state = self._read(str(rank))
        return state is not None and state["done"]

    def _forgive_sleep(self, thread: str) -> float:
        """After this process itself was suspended (a suspended job is, whole), nobody is blamed for that time.

        Returns: now.
        """
        now = time.monotonic()
        if self._slept(self._awake[thread], now):
            self._seen = {name: (value, now) for name, (value, _) in self._seen.items()}
            watchdog.mark("awake again")
        self._awake[thread] = now
        return now

    def _slept(self, awake: float, now: float) -> bool:
        return now - awake > self.period_s + self.silence_s / 2

    def _hear(self, neighbour: dict[str, Any] | None, now: float) -> None:
        other = (self.rank + 1) % self.size
        if neighbour is not None and neighbour["done"]:
            self._seen["neighbour"] = (None, time.monotonic())
        elif self._unchanged("neighbour", None if neighbour is None else neighbour["beat"], now):
            place = "which never began"
            if neighbour is not None:
                place = f"process {neighbour['process']}, last in {neighbour['what']}"
            silence = self._silence("neighbour")
            message = f"rank {other} ({place}) has given no sign of life for {silence}: killed, stopped or cut off"
            watchdog.end(message)

    def _survey(self) -> None:
        """Rank 0: the sum of all marks and where everybody is."""
        found = [self._read(str(rank)) for rank in range(self.size)]
        self._write(
            "job",
            {
                "marks": sum(state["marks"] for state in found if state is not None),
                "where": ["not there yet" if state is None else state["what"] for state in found],
            },
        )

    def _state(self, *, done: bool) -> dict[str, Any]:
        self._beats += 1
        now = watchdog.progress()
        process = f"{os.getpid()} on {socket.gethostname()}"
        what = _ENDED if done else now.what
        return {"beat": self._beats, "marks": now.marks, "what": what, "process": process, "done": done}

    def _unchanged(self, name: str, value: object, now: float) -> bool:
        """Note `value`; True if, when it was asked for, it had been the same for longer than `silence_s`."""
        before, since = self._seen[name]
        if value != before:
            self._seen[name] = (value, time.monotonic())
            return False
        return now - since > self.silence_s

    def _silence(self, name: str) -> str:
        return f"{time.monotonic() - self._seen[name][1]:.0f} s"

    def _over(self) -> bool:
        """Rank 0 has ended in good order, and the store with it."""
        return bool(self._job.get("where")) and self._job["where"][0] == _ENDED

    def _write(self, key: str, value: dict[str, Any]) -> None:
        self.store.set(f"{self._prefix}/{key}", json.dumps(value))

    def _read(self, key: str) -> dict[str, Any] | None:
        key = f"{self._prefix}/{key}"
        return json.loads(self.store.get(key)) if self.store.check([key]) else None


def _prefix() -> str:
    """torchrun keeps the store when it starts the ranks again: what an earlier attempt said must not end this one."""
    return f"rlkd_nemo/heartbeat/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


_running: Heartbeat | None = None


def start(rank: int, size: int, *, silence_s: float) -> None:
    """Begin the heartbeat of this process, once; nothing to do in a world of one."""
    global _running
    if _running is not None or size == 1:
        return
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timedelta(seconds=_CONNECT_S),
    )
    store.set_timeout(timedelta(seconds=silence_s / 3))
    _running = Heartbeat(store, rank, size, silence_s=silence_s, period_s=min(PERIOD_S, silence_s / 5))
    _running.start()
    atexit.register(stop)


def stop() -> None:
    """End it in good order; safe to call twice."""
    global _running
    if _running is not None:
        _running.stop()
        _running = None
