"""Many requests ahead of a run or beside one: so many at once, with progress, until told to stop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from rlkd_nemo.errors import BackendTimeout, BackendUnavailable, BadReply, ServiceError
from rlkd_nemo.gsrm.service.endpoint import Denied
from rlkd_nemo.lifecycle.signals import stop_requested
from rlkd_nemo.report.progress import Progress

log = logging.getLogger(__name__)
T = TypeVar("T")
GIVE_UP_AFTER = 3  # times the concurrency: so many failures in a row, and nobody is there
# Between tries of an item whose endpoints cannot be had: they may limit the rate, or be starting anew. Each wait is at
# least so long, longer where they say when to come back; after the last one the item has failed.
WAITS_S = (1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0, 15.0, 15.0)


@dataclass
class Swept(Generic[T]):
    """How each item ended.

    Attributes:
        counts: there_before, made, rejected, failed, left.
        rejected: answered, but not in the form that was asked for, with the reason.
        failed: nobody answered, with the kind of failure; among them those not asked any more after too many.
    """

    counts: dict[str, int]
    rejected: list[tuple[T, str]] = field(default_factory=list)
    failed: list[tuple[T, str]] = field(default_factory=list)

    @property
    def told(self) -> str:
        """The counts that are not 0, in words."""
        return ", ".join(f"{count} {name}" for name, count in self.counts.items() if count) or "nothing to do"

    @property
    def kinds(self) -> dict[str, int]:
        """How often each kind of failure came."""
        return dict(Counter(kind for _, kind in self.failed))


async def sweep(
    items: Sequence[T],
    ask: Callable[[T], Awaitable[None]],
    description: str,
    *,
    concurrency: int,
    name: Callable[[T], str] = str,
    there: Callable[[T], bool] = lambda item: False,
    stop: Callable[[], bool] = stop_requested,
) -> Swept[T]:
    """Call `ask` for each item. Its BadReply rejects the item, any other ServiceError fails it.

    Args:
        there: does this one need no endpoint? It counts as there_before.
        stop: asked before each item; then what is in flight is finished, and the rest is left.
    """
    swept: Swept[T] = Swept(dict.fromkeys(("there_before", "made", "rejected", "failed", "left"), 0))
    turn, in_a_row = iter(items), 0

    async def patiently(item: T) -> None:
        for wait in WAITS_S:
            try:
                return await ask(item)
            except Denied:
                raise  # a wrong key stays wrong
            except BackendUnavailable as err:
                if stop():
                    raise
                log.debug("%s: %s", name(item), err)
                await _pause(max(wait, err.retry_after_s or 0.0), stop)
        await ask(item)

    async def worker(progress: Progress) -> None:
        nonlocal in_a_row
        for item in turn:
            if stop():
                swept.counts["left"] += 1
                continue
            if in_a_row >= GIVE_UP_AFTER * concurrency:
                swept.counts["failed"] += 1
                swept.failed.append((item, "not_asked"))
                continue
            before = there(item)
            try:
                await patiently(item)
                end, in_a_row = "there_before" if before else "made", 0
            except BadReply as err:
                end, in_a_row = "rejected", 0
                swept.rejected.append((item, str(err)))
            except ServiceError as err:
                end, in_a_row = "failed", in_a_row + 1
                swept.failed.append((item, kind(err)))
                log.warning("%s: %s", name(item), err)
                if in_a_row == GIVE_UP_AFTER * concurrency:
                    log.warning("%d failures in a row: the rest is not asked for", in_a_row)
            swept.counts[end] += 1
            shown = {key: float(value) for key, value in swept.counts.items() if value}
            progress.update(sum(swept.counts.values()), **shown)

    with Progress(len(items), description) as progress:
        await asyncio.gather(*(worker(progress) for _ in range(min(concurrency, max(1, len(items))))))
    return swept


async def _pause(seconds: float, stop: Callable[[], bool]) -> None:
    """Sleep, but not when told to stop."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not stop():
        await asyncio.sleep(min(0.2, seconds))


def kind(err: ServiceError) -> str:
    """The name of a failure, as results and tables have it."""
    if isinstance(err, BackendTimeout):
        return "timeout"
    if isinstance(err, BackendUnavailable):
        return "backend_unavailable"
    return "bad_reply" if isinstance(err, BadReply) else "service_error"
