"""The endpoints of one role: bounded concurrency, retries with backoff, failover, a circuit breaker each.

Raised, whatever happens behind the network: BackendUnavailable, BackendTimeout, BadReply; at start-up also ConfigError.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import anyio
from aiolimiter import AsyncLimiter

from rlkd_nemo.config.schema import Backend
from rlkd_nemo.errors import BackendTimeout, BackendUnavailable, ConfigError, ServiceError
from rlkd_nemo.gsrm.service.breaker import Leave
from rlkd_nemo.gsrm.service.chat import Mode, Reply, Request
from rlkd_nemo.gsrm.service.core import BackendState
from rlkd_nemo.gsrm.service.endpoint import Denied, Endpoint, Rejected

log = logging.getLogger(__name__)
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 10.0  # before the second try; doubled for each further one
_CONSTRAINED: tuple[Mode, ...] = ("vllm", "json_schema")  # in the order of preference


class Backends:
    """All endpoints of a role (`decomposer` or `judge`), which serve the same model.

    Args:
        key: the settings' own key, for messages.
        transport: of httpx2, instead of the network.
        per_s: most calls in a second, whatever they are for: tries after a failure and at start-up included; None: no limit.
            What is spent on waiting for a turn counts for no time limit.
    Raises: ConfigError when the key's environment variable is not set.
    """

    def __init__(self, role: str, settings: Backend, transport: Any = None, per_s: float | None = None) -> None:
        self.role, self.settings, self._key = role, settings, f"gsrm.llm.{role}"
        headers = {}
        if settings.api_key_env is not None:
            if not os.environ.get(settings.api_key_env):
                raise ConfigError(
                    f"{self._key}.api_key_env={settings.api_key_env} is not set in the environment; wanted the key in it"
                )
            headers["Authorization"] = f"Bearer {os.environ[settings.api_key_env]}"
        self._endpoints = [Endpoint(self._key, url, settings, headers, transport) for url in settings.urls]
        self._mode: Mode | None = None if settings.constrain == "auto" else cast(Mode, settings.constrain)
        self._starting = asyncio.Lock()
        self._pace = AsyncLimiter(1, 1 / per_s) if per_s else None

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
                await self._verify(endpoint)
            except Denied as err:
                raise ConfigError(str(err)) from err
            except (ServiceError, TimeoutError) as err:
                down.append(err if isinstance(err, ServiceError) else BackendTimeout(f"{endpoint.url}: no reply"))
                log.warning("%s endpoint %s is not there yet: %s", self.role, endpoint.url, down[-1])
        if len(down) == len(self._endpoints):
            raise BackendUnavailable(f"no {self.role} can be reached ({self._key}.urls): {down[0]}") from down[0]
        log.info("%s: model %s, constrained by %s", self.role, self.settings.model, self.mode)

    async def complete(self, request: Request, deadline: float) -> Reply:
        """A whole reply. `deadline`: on the clock of `time.monotonic`."""
        return await self._try_all(lambda endpoint: endpoint.post(request, self.mode), deadline)

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
            lambda endpoint: endpoint.stream(request, self.mode, hand), deadline, may_retry=lambda: not handed
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
            await endpoint.aclose()

    async def _try_all(self, send: Callable[[Endpoint], Any], deadline: float, may_retry: Any = lambda: True) -> Reply:
        wait = FIRST_WAIT_S
        failed: Endpoint | None = None
        for attempt in range(1, self.settings.attempts + 1):
            deadline += await self._turn()
            endpoint, leave = self._pick(failed)
            try:
                return cast(Reply, await self._once(endpoint, leave, send, deadline))
            except Rejected:
                raise
            except ServiceError as err:
                hopeless = isinstance(err, Denied) and len(self._endpoints) == 1
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

    def _pick(self, failed: Endpoint | None) -> tuple[Endpoint, Leave]:
        """The least busy endpoint whose breaker lets a request through, one that just failed last."""
        for endpoint in sorted(self._endpoints, key=lambda e: (e is failed, e.breaker.state != "closed", e.in_flight)):
            leave = endpoint.breaker.allow()
            if leave is not None:
                return endpoint, leave
        after = min(e.breaker.retry_after_s for e in self._endpoints)
        raise BackendUnavailable(
            f"every {self.role} endpoint has failed {self.settings.breaker_failures} times in a row and is left alone for "
            f"{after:.0f} s ({self._key}.breaker_cool_s): {', '.join(e.url for e in self._endpoints)}",
            retry_after_s=max(after, 0.1),
        )

    async def _once(self, endpoint: Endpoint, leave: Leave, send: Callable[[Endpoint], Any], deadline: float) -> Any:
        endpoint.in_flight += 1
        settled = sent = False
        try:
            with anyio.fail_after(max(0.0, deadline - time.monotonic())) as whole:
                async with endpoint.slots:
                    sent = True
                    with anyio.fail_after(self.settings.timeout_s) as one:
                        if not endpoint.verified:
                            await self._verify(endpoint, whole, one)
                        reply = await send(endpoint)
            endpoint.breaker.success()
            settled = True
            return reply
        except Rejected:
            endpoint.counters["failures"] += 1
            endpoint.breaker.success()  # it works; the request was wrong
            settled = True
            raise
        except (ServiceError, TimeoutError) as err:
            endpoint.counters["failures"] += 1
            if sent:  # waiting for a slot says nothing about the endpoint
                settled = True
                if endpoint.breaker.failure(leave):
                    log.warning(
                        "%s %s is left alone for %g s: %s", self.role, endpoint.url, self.settings.breaker_cool_s, err
                    )
            if isinstance(err, ServiceError):
                raise
            raise BackendTimeout(f"{endpoint.url}: no whole reply from the {self.role} in time") from err
        finally:
            endpoint.in_flight -= 1
            if not settled:
                endpoint.breaker.release(leave)

    async def _verify(self, endpoint: Endpoint, *limits: anyio.CancelScope) -> None:
        """The model is there, and constraints are kept. Args: limits: the time limits around this."""
        with anyio.fail_after(self.settings.timeout_s):
            await endpoint.check_model()
        with _stopped(limits if self._pace is not None else ()):  # whoever is first may be waiting for a turn
            await self._starting.acquire()
        try:
            if endpoint.verified:
                return
            if self._mode is None:
                found: Mode = "none"
                for mode in _CONSTRAINED:
                    if await self._keeps(endpoint, mode, *limits):
                        found = mode
                        break
                self._mode = found
                if self._mode == "none":
                    log.warning(
                        "%s: %s keeps no constraint; replies are read as tags and plain words", self.role, endpoint.url
                    )
            elif self._mode != "none" and not await self._keeps(endpoint, self._mode, *limits):
                raise Denied(
                    f"{endpoint.url} ignores the constraint {self._mode} (it replied with something else, and 200); "
                    f"wanted another {self._key}.constrain"
                )
            endpoint.verified = True
        finally:
            self._starting.release()

    async def _keeps(self, endpoint: Endpoint, mode: Mode, *limits: anyio.CancelScope) -> bool:
        await self._turn(*limits)
        with anyio.fail_after(self.settings.timeout_s):
            return await endpoint.keeps(mode)

    async def _turn(self, *limits: anyio.CancelScope) -> float:
        """Wait until one more call is within the rate; `limits` stand still meanwhile. Returns: the seconds that it took."""
        if self._pace is None:
            return 0.0
        started = time.monotonic()
        with _stopped(limits):
            await self._pace.acquire()
        return time.monotonic() - started


@contextmanager
def _stopped(limits: Sequence[anyio.CancelScope]) -> Iterator[None]:
    """The clocks of these time limits stand still within the block."""
    started, ends = anyio.current_time(), [limit.deadline for limit in limits]
    for limit in limits:
        limit.deadline = math.inf
    try:
        yield
    finally:
        for limit, end in zip(limits, ends):
            limit.deadline = end + anyio.current_time() - started
