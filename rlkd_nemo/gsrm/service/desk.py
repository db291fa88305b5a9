"""Between requests and core: what is known is not asked, what is asked twice is asked once, and never too much at a time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlkd_nemo.config.schema import GsrmServer
from rlkd_nemo.errors import RlkdError
from rlkd_nemo.gsrm.service.cache import ResultCache
from rlkd_nemo.gsrm.service.core import Item, ScoringCore
from rlkd_nemo.gsrm.service.metrics import Metrics
from rlkd_nemo.gsrm.service.wire import content_key, encode, failed
from rlkd_nemo.types import Failure

log = logging.getLogger(__name__)


class Busy(RlkdError):
    """The queue is full; ask again later."""

    retryable = True


@dataclass
class _Flight:
    """One distinct item on its way; it lives as long as somebody waits for it."""

    task: asyncio.Task[bytes]
    waiters: int = 0


class Desk:
    """Answers items from cache, from work in flight, or from the core.

    Args: settings: `concurrency` items are at the core at once, `queue_items` more may wait.
    """

    def __init__(self, core: ScoringCore, settings: GsrmServer, metrics: Metrics) -> None:
        self.core, self.settings, self.metrics = core, settings, metrics
        self.cache = ResultCache(settings.cache_bytes)
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._flights: dict[bytes, _Flight] = {}
        metrics.in_flight.set_function(lambda: len(self._flights))
        metrics.cache_bytes.set_function(lambda: self.cache.bytes)

    def keys(self, items: Sequence[Item]) -> list[bytes]:
        """The content key of each item."""
        version = self.core.version
        return [content_key(item, version) for item in items]

    def admit(self, keys: Sequence[bytes]) -> None:
        """Raises Busy when the items of `keys` that are new do not fit into the queue; all or none are admitted."""
        new = sum(key not in self._flights and self.cache.get(key) is None for key in set(keys))
        room = self.settings.concurrency + self.settings.queue_items - len(self._flights)
        if new > room:
            raise Busy(
                f"{new} new items do not fit: {len(self._flights)} are being scored or wait, and the server takes "
                f"{self.settings.concurrency + self.settings.queue_items} (gsrm.server.concurrency + queue_items)"
            )

    def known(self, key: bytes) -> bytes | None:
        """The answer from the cache."""
        found = self.cache.get(key)
        if found is not None:
            self.metrics.cached.inc()
        return found

    async def answer(self, item: Item, key: bytes, deadline_s: float) -> bytes:
        """The encoded result (without id) of an admitted item, at the latest after `deadline_s`. Never raises for it."""
        known = self.known(key)
        if known is not None:
            return known
        started = time.monotonic()
        flight = self._flights.get(key)
        if flight is None:
            flight = _Flight(asyncio.create_task(self._score(item, key)))
            self._flights[key] = flight
            flight.task.add_done_callback(lambda _: self._forget(key, flight))
        else:
            self.metrics.coalesced.inc()
        flight.waiters += 1
        try:
            await asyncio.wait({flight.task}, timeout=deadline_s)
            answer = self._outcome(flight, item, deadline_s)
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.task.done():
                # Nobody waits any more: the core stops, and an equal item that comes now is asked anew.
                self._forget(key, flight)
                flight.task.cancel()
        self.metrics.seconds.observe(time.monotonic() - started)
        return answer

    def abort(self) -> None:
        """End all that is in flight: whoever waits gets a typed failure."""
        for flight in list(self._flights.values()):
            flight.task.cancel()

    def _forget(self, key: bytes, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _outcome(self, flight: _Flight, item: Item, deadline_s: float) -> bytes:
        if not flight.task.done():
            self.metrics.count("failed", Failure.TIMEOUT)
            return encode(failed(item.id, Failure.TIMEOUT, f"not scored within {deadline_s:g} s, queueing included"))
        if flight.task.cancelled():
            self.metrics.count("failed", Failure.BACKEND_UNAVAILABLE)
            return encode(failed(item.id, Failure.BACKEND_UNAVAILABLE, "the server is shutting down"))
        return flight.task.result()

    async def _score(self, item: Item, key: bytes) -> bytes:
        try:
            async with self._slots:
                # The longest that anybody may wait; who waits less leaves, and the last one to leave cancels.
                result = await self.core.score(item, deadline_s=self.settings.deadline_s)
            encoded = encode(result)
        except Exception:
            log.exception("item %s: the server has a fault", item.id, extra={"item_id": item.id})
            self.metrics.faults.inc()
            result = failed(
                item.id, Failure.BACKEND_UNAVAILABLE, "a fault inside the server; its log has the traceback"
            )
            encoded = encode(result)
        self.metrics.count(result.status, result.failure)
        if result.status == "ok":
            self.cache.put(key, encoded)
        else:
            log.info("item not scored: %s", result.error, extra={"item_id": item.id, "failure": str(result.failure)})
        return encoded


def too_large(item: Item, limit: int) -> str | None:
    """Why the item is beyond `limit` characters; None when it is not."""
    sizes = {"problem": len(item.problem), "response": len(item.response)} | {
        f"references[{number}]": len(text) for number, text in enumerate(item.references)
    }
    name = max(sizes, key=lambda key: sizes[key])
    if sizes[name] <= limit:
        return None
    return f"{name} has {sizes[name]} characters; wanted at most {limit} (gsrm.server.text_chars)"


def with_references(item: Item, references: tuple[str, ...]) -> Item:
    """The item with the references that its id stands for."""
    return replace(item, references=references)
