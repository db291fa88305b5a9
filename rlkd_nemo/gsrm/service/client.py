"""The trainer's side of the wire: items to whichever server answers, results back under their ids.

One event loop in a thread of its own keeps connections open between steps; callers get futures, so that they can do
other work meanwhile. A request may be sent twice (a lost answer): equal items are scored once by the server, so that
does no harm.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import json
import logging
import random
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx2

from rlkd_nemo.config.schema import GsrmService
from rlkd_nemo.errors import ConfigError, ServiceError
from rlkd_nemo.gsrm.service.core import Item, Result
from rlkd_nemo.gsrm.service.wire import decode
from rlkd_nemo.types import Failure

log = logging.getLogger(__name__)
# Beyond an item's deadline, which the server keeps: for the answer to arrive.
GRACE_S = 5.0
# A refusal of the request itself: the same again would be refused again.
_FINAL = (400, 401, 403, 404, 405, 413, 422)


class _Undelivered(ServiceError):
    """A request without a whole answer; `wait_s` is what the server asked for. `counts`: it uses up an attempt."""

    def __init__(self, message: str, wait_s: float = 0.0, counts: bool = True) -> None:
        super().__init__(message)
        self.wait_s, self.counts = wait_s, counts


class _Refused(ServiceError):
    """The server will not take this request, however often it is sent."""

    retryable = False


class GsrmClient:
    """Asks the servers of `gsrm.service.urls`, sharing the work between them and going round those that fail.

    Args: token: sent as bearer token; None: none.
    """

    def __init__(self, settings: GsrmService, token: str | None = None) -> None:
        self.settings = settings
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._turn = itertools.count()
        self._down_until = dict.fromkeys(settings.urls, 0.0)
        self._jitter = random.Random()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gsrm-client", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()

    def check(self, rules: Mapping[str, str]) -> str:
        """Wait until a server is ready, then hold its rules against `rules` (norm, alignment, ...) and try the token.

        Returns: the server's version.
        Raises: ServiceError when none is ready within `startup_s`; ConfigError when one scores by other rules.
        """
        return asyncio.run_coroutine_threadsafe(self._check(dict(rules)), self._loop).result()

    def submit(self, items: Sequence[Item]) -> concurrent.futures.Future[list[Result]]:
        """Begin to score; the future has one result an item, in order, and never an exception of the service."""
        return asyncio.run_coroutine_threadsafe(self._score(list(items)), self._loop)

    def score(self, items: Sequence[Item]) -> list[Result]:
        """One result an item, in order, at the latest a little after `deadline_s`."""
        return self.submit(items).result()

    def close(self) -> None:
        """Close connections and end the thread; what is in flight is cancelled."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _open(self) -> None:
        most = self.settings.concurrency
        self._http = httpx2.AsyncClient(
            headers=self._headers,
            timeout=httpx2.Timeout(self.settings.deadline_s + GRACE_S, connect=5.0),
            limits=httpx2.Limits(max_connections=most, max_keepalive_connections=most),
            trust_env=False,
        )
        # In front of the pool: what waits there would run into the pool's own timeout.
        self._requests = asyncio.Semaphore(most)

    async def _close(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._http.aclose()

    async def _score(self, items: list[Item]) -> list[Result]:
        size = self.settings.items_per_request
        parts = [items[start : start + size] for start in range(0, len(items), size)]
        found: dict[str, Result] = {}
        for results in await asyncio.gather(*(self._deliver(part) for part in parts)):
            found |= results
        return [found[item.id] for item in items]

    async def _deliver(self, items: list[Item]) -> dict[str, Result]:
        """A result for each item, asking again for those that are missing."""
        end = time.monotonic() + self.settings.deadline_s
        missing = {item.id: item for item in items}
        found: dict[str, Result] = {}
        attempt, last, failure, final = 0, "", Failure.BACKEND_UNAVAILABLE, False
        while missing and attempt < self.settings.attempts:
            left = end - time.monotonic()
            if left <= 0:
                failure, last = Failure.TIMEOUT, last or f"no answer within {self.settings.deadline_s:g} s"
                break
            url = self._pick()
            try:
                async with self._requests:
                    await self._ask(url, missing, found, left)
                self._down_until[url] = 0.0
                continue
            except _Refused as err:
                last, final = f"{url}: {err}", True
                break
            except _Undelivered as err:
                last = f"{url}: {err}"
                attempt += err.counts
                backoff = self.settings.backoff_s * 2 ** max(attempt - 1, 0)
                wait = max(err.wait_s, backoff) * self._jitter.uniform(0.75, 1.25)
                self._down_until[url] = time.monotonic() + wait
                if attempt < self.settings.attempts and not self._another():
                    await asyncio.sleep(min(wait, max(end - time.monotonic(), 0.0)))
        for item_id in missing:
            detail: dict[str, Any] = {"final": True} if final else {}
            found[item_id] = Result(item_id, "failed", None, failure=failure, error=last, detail=detail)
        return found

    def _pick(self) -> str:
        """The next url in turn that is not known to be down, or else the one that is down for the shortest time."""
        urls = self.settings.urls
        first = next(self._turn)
        turn = [urls[(first + n) % len(urls)] for n in range(len(urls))]
        now = time.monotonic()
        return next((url for url in turn if self._down_until[url] <= now), min(turn, key=self._down_until.__getitem__))

    def _another(self) -> bool:
        now = time.monotonic()
        return any(until <= now for until in self._down_until.values())

    async def _ask(self, url: str, missing: dict[str, Item], found: dict[str, Result], left: float) -> None:
        """One request; every result moves its item from `missing` to `found` as it arrives."""
        asked = len(missing)
        try:
            await asyncio.wait_for(self._stream(url, missing, found, left), left + GRACE_S)
        except httpx2.HTTPError as err:
            raise _Undelivered(f"{type(err).__name__}: {err}") from err
        except asyncio.TimeoutError as err:
            raise _Undelivered(f"no whole answer within {left + GRACE_S:.0f} s") from err
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise _Undelivered(f"a line that is no result ({type(err).__name__}: {err})") from err
        if missing:
            raise _Undelivered(f"the answer ended with {len(missing)} of {asked} results missing")

    async def _stream(self, url: str, missing: dict[str, Item], found: dict[str, Result], left: float) -> None:
        body = {"deadline_s": left, "items": [_plain(item) for item in missing.values()]}
        headers = {"accept": "application/x-ndjson"}
        async with self._http.stream("POST", f"{url.rstrip('/')}/score", json=body, headers=headers) as answer:
            if answer.status_code != 200:
                await answer.aread()
                _raise_for(answer)
            kind = answer.headers.get("content-type", "nothing")
            if not kind.startswith("application/x-ndjson"):
                raise _Refused(f"answered {kind}: that is no GSRM server")
            async for line in answer.aiter_lines():
                result = decode(json.loads(line))
                if missing.pop(result.id, None) is not None:
                    found[result.id] = result

    async def _check(self, rules: dict[str, str]) -> str:
        settings = self.settings
        end = time.monotonic() + settings.startup_s
        while True:
            states = await asyncio.gather(*(self._ready(url) for url in settings.urls))
            ready = [(url, state) for url, state in zip(settings.urls, states) if not isinstance(state, str)]
            if ready:
                break
            if time.monotonic() > end:
                told = "; ".join(f"{url}: {state}" for url, state in zip(settings.urls, states))
                raise ServiceError(
                    f"no GSRM server is ready after gsrm.service.startup_s={settings.startup_s:g} s ({told}); start one with "
                    "examples/serve_gsrm.py, or change gsrm.service.urls"
                )
            await asyncio.sleep(min(1.0, settings.startup_s / 10))
        for url, state in zip(settings.urls, states):
            if isinstance(state, str):
                log.warning("GSRM server %s is not ready (%s): the others do its work", url, state)
        for url, state in ready:
            theirs = state["rules"]
            other = [f"{key}={theirs.get(key)}" for key, value in rules.items() if theirs.get(key) != value]
            if other:
                wanted = ", ".join(f"gsrm.{key}={value}" for key, value in rules.items() if theirs.get(key) != value)
                raise ConfigError(
                    f"GSRM server {url} scores with {', '.join(other)}, this run wants {wanted}; make them equal"
                )
            try:
                await self._ask(url, {}, {}, 10.0)
            except ServiceError as err:
                raise ConfigError(f"GSRM server {url}: {err}") from err
        versions = {state["version"] for _, state in ready}
        if len(versions) > 1:
            raise ConfigError(
                f"the GSRM servers are of different versions ({'; '.join(sorted(versions))}); make them equal"
            )
        return versions.pop()

    async def _ready(self, url: str) -> dict[str, Any] | str:
        """What /ready says; a text when it does not say yes."""
        try:
            answer = await self._http.get(f"{url.rstrip('/')}/ready", timeout=5.0)
            state = answer.json()
            return state if state["ready"] else str(state["reason"])
        except httpx2.HTTPError as err:
            return f"{type(err).__name__}: {err}"
        except (ValueError, KeyError, TypeError) as err:
            return f"answered something else than a GSRM server ({type(err).__name__}: {err})"


def _plain(item: Item) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "id": item.id,
        "problem": _utf8(item.problem),
        "response": _utf8(item.response),
        "references": [_utf8(text) for text in item.references],
    }
    return plain if item.domain is None else {**plain, "domain": item.domain}


def _utf8(text: str) -> str:
    """Half surrogate pairs, which a decoder can leave behind, become question marks: UTF-8 has none."""
    return text.encode("utf-8", "replace").decode()


def _raise_for(answer: httpx2.Response) -> None:
    try:
        error = answer.json()["error"]
        told = f"{answer.status_code} {error['code']}: {error['message']} (request {error['request_id']})"
    except (ValueError, KeyError, TypeError):
        told = f"{answer.status_code}: {answer.text[:200]!r}"
    if answer.status_code in _FINAL:
        raise _Refused(told)
    after = answer.headers.get("retry-after", "")
    # A full queue is no fault of the server: whoever waits gets in, until the deadline.
    raise _Undelivered(told, float(after) if after.isdigit() else 0.0, counts=answer.status_code != 429)
