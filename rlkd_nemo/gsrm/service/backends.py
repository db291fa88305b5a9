"""The endpoints of one role: bounded concurrency, retries with backoff, failover, a circuit breaker each.

Raised, whatever happens behind the network: BackendUnavailable, BackendTimeout, BadReply; at start-up also ConfigError.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import anyio
import httpx2

from rlkd_nemo.config.schema import Backend
from rlkd_nemo.errors import BackendTimeout, BackendUnavailable, BadReply, ConfigError, ServiceError
from rlkd_nemo.gsrm.schema import shown
from rlkd_nemo.gsrm.service import chat
from rlkd_nemo.gsrm.service.breaker import Breaker
from rlkd_nemo.gsrm.service.chat import Choice, Mode, Reply, Request
from rlkd_nemo.gsrm.service.core import BackendState

log = logging.getLogger(__name__)
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 10.0  # before the second try; doubled for each further one
_COUNTERS = ("calls", "failures", "retries", "cancelled", "prompt_tokens", "completion_tokens")
_PROBE_TOKENS = 32
_CONSTRAINED: tuple[Mode, ...] = ("vllm", "json_schema")  # in the order of preference


class _Rejected(BadReply):
    """The request is at fault (4xx): another endpoint would say the same."""


class _Denied(BackendUnavailable):
    """Wrong key or unknown model: this endpoint cannot serve as it is configured; another one may."""


class _Endpoint:
    """One address: its connections, breaker and counters."""

    def __init__(self, url: str, settings: Backend, headers: dict[str, str], transport: Any) -> None:
        self.url, self.verified = url.rstrip("/"), False
        self.breaker = Breaker(settings.breaker_failures, settings.breaker_cool_s)
        self.slots = asyncio.Semaphore(settings.max_concurrency)
        self.in_flight = 0
        self.counters = Counter(dict.fromkeys(_COUNTERS, 0))
        self.http = httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(None, connect=settings.connect_timeout_s),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=settings.max_concurrency),
            transport=transport,
        )


class Backends:
    """All endpoints of a role (`decomposer` or `judge`), which serve the same model.

    Args:
        key: the settings' own key, for messages.
        transport: of httpx2, instead of the network.
    Raises: ConfigError when the key's environment variable is not set.
    """

    def __init__(self, role: str, settings: Backend, transport: Any = None) -> None:
        self.role, self.settings, self._key = role, settings, f"gsrm.llm.{role}"
        headers = {}
        if settings.api_key_env is not None:
            if not os.environ.get(settings.api_key_env):
                raise ConfigError(
                    f"{self._key}.api_key_env={settings.api_key_env} is not set in the environment; wanted the key in it"
                )
            headers["Authorization"] = f"Bearer {os.environ[settings.api_key_env]}"
        self._endpoints = [_Endpoint(url, settings, headers, transport) for url in settings.urls]
        self._mode: Mode | None = None if settings.constrain == "auto" else cast(Mode, settings.constrain)
        self._starting = asyncio.Lock()

    @property
    def mode(self) -> Mode:
        """How replies are constrained; known after `start`."""
        assert self._mode is not None, "start() has not been called"
        return self._mode

    async def start(self) -> None:
        """Check every endpoint that can be reached: its model, and what it can constrain.

        Raises: ConfigError for a wrong key, another model or a constraint that is ignored; BackendUnavailable when none
            can be reached. One of several that is down is a warning: it is checked when it is back.
        """
        down: list[ServiceError] = []
        for endpoint in self._endpoints:
            try:
                with anyio.fail_after(self.settings.timeout_s):
                    await self._verify(endpoint)
            except _Denied as err:
                raise ConfigError(str(err)) from err
            except (ServiceError, TimeoutError) as err:
                down.append(err if isinstance(err, ServiceError) else BackendTimeout(f"{endpoint.url}: no reply"))
                log.warning("%s endpoint %s is not there yet: %s", self.role, endpoint.url, down[-1])
        if len(down) == len(self._endpoints):
            raise BackendUnavailable(f"no {self.role} can be reached ({self._key}.urls): {down[0]}") from down[0]
        log.info("%s: model %s, constrained by %s", self.role, self.settings.model, self.mode)

    async def complete(self, request: Request, deadline: float) -> Reply:
        """A whole reply. `deadline`: on the clock of `time.monotonic`."""
        return await self._try_all(lambda endpoint: self._post(endpoint, request), deadline)

    async def stream(self, request: Request, deadline: float, on_text: Callable[[str], None]) -> Reply:
        """The same in pieces, each handed to `on_text` as it comes. Cancel the task to stop the generation.

        Nothing is tried again once a piece was handed out: the caller decides whether to start anew.
        """
        handed = False

        def hand(text: str) -> None:
            nonlocal handed
            handed = True
            on_text(text)

        return await self._try_all(
            lambda endpoint: self._stream(endpoint, request, hand), deadline, may_retry=lambda: not handed
        )

    def states(self) -> list[BackendState]:
        """Every endpoint as it is now."""
        return [
            BackendState(
                role=self.role,
                name=f"{endpoint.url} {self.settings.model}",
                breaker=endpoint.breaker.state,
                retry_after_s=endpoint.breaker.retry_after_s,
                in_flight=endpoint.in_flight,
                counters=dict(endpoint.counters),
            )
            for endpoint in self._endpoints
        ]

    async def aclose(self) -> None:
        """Close all connections."""
        for endpoint in self._endpoints:
            await endpoint.http.aclose()

    async def _try_all(self, send: Callable[[_Endpoint], Any], deadline: float, may_retry: Any = lambda: True) -> Reply:
        wait = FIRST_WAIT_S
        failed: _Endpoint | None = None
        for attempt in range(1, self.settings.attempts + 1):
            endpoint = self._pick(failed)
            try:
                return cast(Reply, await self._once(endpoint, send, deadline))
            except _Rejected:
                raise
            except ServiceError as err:
                hopeless = isinstance(err, _Denied) and len(self._endpoints) == 1
                if hopeless or attempt == self.settings.attempts or not may_retry():
                    raise
                pause = max(getattr(err, "retry_after_s", None) or 0.0, wait * random.uniform(0.5, 1.0))
                if time.monotonic() + pause >= deadline:
                    raise
                log.debug("%s %s: %s; again in %.1f s", self.role, endpoint.url, err, pause)
                endpoint.counters["retries"] += 1
                failed, wait = endpoint, min(LONGEST_WAIT_S, 2 * wait)
                # Another endpoint need not be waited for.
                if not any(e is not endpoint and e.breaker.state == "closed" for e in self._endpoints):
                    await asyncio.sleep(pause)
        raise AssertionError("attempts is at least 1")

    def _pick(self, failed: _Endpoint | None) -> _Endpoint:
        """The least busy endpoint whose breaker lets a request through, one that just failed last."""
        for endpoint in sorted(self._endpoints, key=lambda e: (e is failed, e.breaker.state != "closed", e.in_flight)):
            if endpoint.breaker.allow():
                return endpoint
        after = min(e.breaker.retry_after_s for e in self._endpoints)
        raise BackendUnavailable(
            f"every {self.role} endpoint has failed {self.settings.breaker_failures} times in a row and is left alone for "
            f"{after:.0f} s ({self._key}.breaker_cool_s): {', '.join(e.url for e in self._endpoints)}",
            retry_after_s=max(after, 0.1),
        )

    async def _once(self, endpoint: _Endpoint, send: Callable[[_Endpoint], Any], deadline: float) -> Any:
        endpoint.in_flight += 1
        settled = sent = False
        try:
            with anyio.fail_after(max(0.0, deadline - time.monotonic())):
                async with endpoint.slots:
                    sent = True
                    with anyio.fail_after(self.settings.timeout_s):
                        if not endpoint.verified:
                            await self._verify(endpoint)
                        reply = await send(endpoint)
            endpoint.breaker.success()
            settled = True
            return reply
        except _Rejected:
            endpoint.counters["failures"] += 1
            endpoint.breaker.success()  # it works; the request was wrong
            settled = True
            raise
        except (ServiceError, TimeoutError) as err:
            endpoint.counters["failures"] += 1
            if sent:  # waiting for a slot says nothing about the endpoint
                settled = True
                if endpoint.breaker.failure():
                    log.warning(
                        "%s %s is left alone for %g s: %s", self.role, endpoint.url, self.settings.breaker_cool_s, err
                    )
            if isinstance(err, ServiceError):
                raise
            raise BackendTimeout(f"{endpoint.url}: no whole reply from the {self.role} in time") from err
        finally:
            endpoint.in_flight -= 1
            if not settled:
                endpoint.breaker.release()

    def _body(self, request: Request, mode: Mode, stream: bool) -> dict[str, Any]:
        settings = self.settings
        return chat.body(request, settings.model, mode, stream, settings.limit_field, settings.reasoning_tokens)

    async def _post(self, endpoint: _Endpoint, request: Request, mode: Mode | None = None) -> Reply:
        fields = self._body(request, mode or self.mode, stream=False)
        endpoint.counters["calls"] += 1
        with _network_errors(endpoint.url):
            response = await endpoint.http.post(f"{endpoint.url}/chat/completions", json=fields)
        self._accept(endpoint, response.status_code, response.content, response.headers)
        reply = chat.read(response.content, response.headers.get("content-type", ""), self.settings.model)
        endpoint.counters["prompt_tokens"] += reply.prompt_tokens
        endpoint.counters["completion_tokens"] += reply.completion_tokens
        return reply

    async def _stream(self, endpoint: _Endpoint, request: Request, on_text: Callable[[str], None]) -> Reply:
        fields = self._body(request, self.mode, stream=True)
        endpoint.counters["calls"] += 1
        reader, text = chat.StreamReader(self.settings.model), []
        try:
            with _network_errors(endpoint.url):
                async with endpoint.http.stream("POST", f"{endpoint.url}/chat/completions", json=fields) as response:
                    kind = response.headers.get("content-type", "")
                    if response.status_code != 200 or "event-stream" not in kind:
                        content = await response.aread()
                        self._accept(endpoint, response.status_code, content, response.headers)
                        raise BadReply(
                            f"{endpoint.url}: wanted a stream of events, got {kind or 'nothing'}: "
                            f"{shown(content.decode('utf-8', 'replace'))}"
                        )
                    async for data in chat.events(response.aiter_bytes()):
                        piece = reader.feed(data)
                        if piece:
                            text.append(piece)
                            on_text(piece)
            if reader.finish is None:
                raise BackendUnavailable(f"{endpoint.url}: the stream broke off after {reader.pieces} pieces")
        except asyncio.CancelledError:
            endpoint.counters["cancelled"] += 1
            raise
        finally:
            endpoint.counters["prompt_tokens"] += reader.usage[0]
            endpoint.counters["completion_tokens"] += reader.completion_tokens
        return Reply("".join(text), reader.finish, *reader.usage)

    def _accept(self, endpoint: _Endpoint, status: int, content: bytes, headers: Any) -> None:
        """Raises for every status but 200."""
        if status == 200:
            return
        said = f"{endpoint.url}: HTTP {status}: {shown(content.decode('utf-8', 'replace'), 200)}"
        if status in (401, 403):
            raise _Denied(f"{said}; wanted a valid key in the environment variable of {self._key}.api_key_env")
        if status == 404:
            raise _Denied(f"{said}; wanted an address such as http://host:8000/v1 in {self._key}.urls, and its model")
        if status in (408, 409, 425, 429) or status >= 500:
            raise BackendUnavailable(said, retry_after_s=_seconds(headers.get("retry-after")))
        raise _Rejected(said)

    async def _verify(self, endpoint: _Endpoint) -> None:
        """The model is there, and constraints are kept."""
        with _network_errors(endpoint.url):
            response = await endpoint.http.get(f"{endpoint.url}/models")
        self._accept(endpoint, response.status_code, response.content, response.headers)
        try:
            names = [entry["id"] for entry in response.json()["data"]]
        except (ValueError, KeyError, TypeError) as err:
            raise BadReply(f"{endpoint.url}/models is no list of models: {shown(response.text)}") from err
        if not names:
            # `transformers serve` lists what its cache holds, and serves what it was given; replies name their model.
            log.warning(
                "%s lists no model; whether it serves %s is seen by its replies", endpoint.url, self.settings.model
            )
        elif self.settings.model not in names:
            raise _Denied(
                f"{endpoint.url} serves {', '.join(map(str, names[:5]))}; wanted {self._key}.model="
                f"{self.settings.model}"
            )
        async with self._starting:
            if self._mode is None:
                found: Mode = "none"
                for mode in _CONSTRAINED:
                    if await self._keeps(endpoint, mode):
                        found = mode
                        break
                self._mode = found
                if self._mode == "none":
                    log.warning(
                        "%s: %s keeps no constraint; replies are read as tags and plain words", self.role, endpoint.url
                    )
            elif self._mode != "none" and not await self._keeps(endpoint, self._mode):
                raise _Denied(
                    f"{endpoint.url} ignores the constraint {self._mode} (it replied with something else, and 200); "
                    f"wanted another {self._key}.constrain"
                )
        endpoint.verified = True

    async def _keeps(self, endpoint: _Endpoint, mode: Mode) -> bool:
        """Ask for one of two nonsense words that no model would say by itself; unknown fields are ignored silently."""
        options = (f"zq{secrets.token_hex(3)}", f"zq{secrets.token_hex(3)}")
        messages = [{"role": "user", "content": "Reply with the single word hello."}]
        try:
            reply = await self._post(endpoint, Request(messages, _PROBE_TOKENS, Choice(options)), mode)
        except _Rejected:
            return False
        return chat.chosen(reply.text, options, mode) is not None


@contextmanager
def _network_errors(url: str) -> Iterator[None]:
    try:
        yield
    except httpx2.TimeoutException as err:
        raise BackendUnavailable(f"{url}: {type(err).__name__} ({err})") from err
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as err:
        raise BackendUnavailable(f"{url}: {type(err).__name__} ({err})") from err


def _seconds(header: str | None) -> float | None:
    try:
        return max(0.0, float(header)) if header is not None else None
    except ValueError:
        return None  # a date: our own backoff serves
