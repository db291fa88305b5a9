"""One endpoint: requests to its address, what they cost, and every way in which they fail, typed."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from rlkd_nemo.config.schema import Backend
from rlkd_nemo.errors import BackendUnavailable, BadReply
from rlkd_nemo.gsrm.schema import shown
from rlkd_nemo.gsrm.service import chat
from rlkd_nemo.gsrm.service.breaker import Breaker
from rlkd_nemo.gsrm.service.chat import Choice, Mode, Reply, Request

log = logging.getLogger(__name__)
_COUNTERS = ("calls", "failures", "retries", "cancelled", "prompt_tokens", "completion_tokens")
_PROBE_TOKENS = 32


class Rejected(BadReply):
    """The request is at fault (4xx): another endpoint would say the same."""


class Denied(BackendUnavailable):
    """Wrong key or unknown model: this endpoint cannot serve as it is configured; another one may."""


class Endpoint:
    """One address: its connections, breaker and counters.

    Args: key: of the settings, for messages.   transport: of httpx2, instead of the network.
    Every method that asks raises BackendUnavailable, BadReply, and of these Denied and Rejected.
    """

    def __init__(self, key: str, url: str, settings: Backend, headers: dict[str, str], transport: Any) -> None:
        self.url, self.verified = url.rstrip("/"), False
        self._key, self._settings = key, settings
        self.breaker = Breaker(settings.breaker_failures, settings.breaker_cool_s)
        self.slots = asyncio.Semaphore(settings.max_concurrency)
        self.in_flight = 0
        self.counters = Counter(dict.fromkeys(_COUNTERS, 0))
        self._http = httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(None, connect=settings.connect_timeout_s),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=settings.max_concurrency),
            transport=transport,
        )

    async def post(self, request: Request, mode: Mode) -> Reply:
        """A whole reply."""
        fields = self._body(request, mode, stream=False)
        self.counters["calls"] += 1
        with _network_errors(self.url):
            response = await self._http.post(f"{self.url}/chat/completions", json=fields)
        self._accept(response.status_code, response.content, response.headers)
        reply = chat.read(response.content, response.headers.get("content-type", ""), self._settings.model)
        self.counters["prompt_tokens"] += reply.prompt_tokens
        self.counters["completion_tokens"] += reply.completion_tokens
        return reply

    async def stream(self, request: Request, mode: Mode, on_text: Callable[[str], None]) -> Reply:
        """The same in pieces, each handed to `on_text` as it comes."""
        fields = self._body(request, mode, stream=True)
        self.counters["calls"] += 1
        reader, text = chat.StreamReader(self._settings.model), []
        try:
            with _network_errors(self.url):
                async with self._http.stream("POST", f"{self.url}/chat/completions", json=fields) as response:
                    kind = response.headers.get("content-type", "")
                    if response.status_code != 200 or "event-stream" not in kind:
                        content = await response.aread()
                        self._accept(response.status_code, content, response.headers)
                        raise BadReply(
                            f"{self.url}: wanted a stream of events, got {kind or 'nothing'}: "
                            f"{shown(content.decode('utf-8', 'replace'))}"
                        )
                    async for data in chat.events(response.aiter_bytes()):
                        piece = reader.feed(data)
                        if piece:
                            text.append(piece)
                            on_text(piece)
            if reader.finish is None:
                raise BackendUnavailable(f"{self.url}: the stream broke off after {reader.pieces} pieces")
        except asyncio.CancelledError:
            self.counters["cancelled"] += 1
            raise
        finally:
            self.counters["prompt_tokens"] += reader.usage[0]
            self.counters["completion_tokens"] += reader.completion_tokens
        return Reply("".join(text), reader.finish, *reader.usage)

    async def check_model(self) -> None:
        """Does it serve the model of the settings? Raises Denied if not, and as `post` does."""
        with _network_errors(self.url):
            response = await self._http.get(f"{self.url}/models")
        self._accept(response.status_code, response.content, response.headers)
        try:
            names = [entry["id"] for entry in response.json()["data"]]
        except (ValueError, KeyError, TypeError, RecursionError) as err:
            raise BadReply(f"{self.url}/models is no list of models: {shown(response.text)}") from err
        if not names:
            # `transformers serve` lists what its cache holds, and serves what it was given; replies name their model.
            log.warning(
                "%s lists no model; whether it serves %s is seen by its replies", self.url, self._settings.model
            )
        elif self._settings.model not in names:
            raise Denied(
                f"{self.url} serves {', '.join(map(str, names[:5]))}; wanted {self._key}.model={self._settings.model}"
            )

    async def keeps(self, mode: Mode) -> bool:
        """Is a constraint of this mode kept? Unknown fields are ignored silently: it is asked for one of two nonsense words
        that no model would say by itself."""
        options = (f"zq{secrets.token_hex(3)}", f"zq{secrets.token_hex(3)}")
        messages = [{"role": "user", "content": "Reply with the single word hello."}]
        try:
            reply = await self.post(Request(messages, _PROBE_TOKENS, Choice(options)), mode)
        except Rejected:
            return False
        return chat.chosen(reply.text, options, mode) is not None

    async def aclose(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    def _body(self, request: Request, mode: Mode, stream: bool) -> dict[str, Any]:
        settings = self._settings
        return chat.body(request, settings.model, mode, stream, settings.limit_field, settings.reasoning_tokens)

    def _accept(self, status: int, content: bytes, headers: Any) -> None:
        """Raises for every status but 200."""
        if status == 200:
            return
        said = f"{self.url}: HTTP {status}: {shown(content.decode('utf-8', 'replace'), 200)}"
        if status in (401, 403):
            raise Denied(f"{said}; wanted a valid key in the environment variable of {self._key}.api_key_env")
        if status == 404:
            raise Denied(f"{said}; wanted an address such as http://host:8000/v1 in {self._key}.urls, and its model")
        if status in (408, 409, 425, 429) or status >= 500:
            raise BackendUnavailable(said, retry_after_s=_seconds(headers.get("retry-after")))
        raise Rejected(said)


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
