"""The server's HTTP side (design: POST /score, POST /references, GET /health, /ready, /metrics).

A request that cannot be read, or not be taken now, is one error with a code; an item that could not be scored is a typed
failure in its own place, and the others keep their results.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from rlkd_nemo.config.schema import GsrmServer
from rlkd_nemo.errors import ServiceError
from rlkd_nemo.gsrm.service.core import Item, ScoringCore
from rlkd_nemo.gsrm.service.desk import Busy, Desk, too_large, with_references
from rlkd_nemo.gsrm.service.metrics import Metrics
from rlkd_nemo.gsrm.service.observed import Observed, error
from rlkd_nemo.gsrm.service.registry import ReferenceRegistry
from rlkd_nemo.gsrm.service.wire import (
    Asked,
    BadRequest,
    encode,
    failed,
    references_request,
    score_request,
    with_id,
)
from rlkd_nemo.types import Failure

log = logging.getLogger(__name__)
NDJSON = "application/x-ndjson"


class GsrmApp:
    """One server's state and its routes; `asgi` is what a web server runs.

    Args:
        core: started by the caller.
        token: wanted as `Authorization: Bearer`; None: nobody is asked. /health, /ready and /metrics are open.
        rules: settings that a reward depends on, shown by /ready for the client to compare.
    """

    def __init__(
        self,
        core: ScoringCore,
        settings: GsrmServer,
        registry: ReferenceRegistry,
        *,
        token: str | None = None,
        rules: Mapping[str, str] | None = None,
    ) -> None:
        self.core, self.settings, self.registry, self.rules = core, settings, registry, dict(rules or {})
        self.draining = False
        self._token = f"Bearer {token}".encode() if token else None
        self.metrics = Metrics(core)
        self.metrics.draining.set_function(lambda: float(self.draining))
        self.desk = Desk(core, settings, self.metrics)
        self.asgi = Observed(
            Starlette(
                routes=[
                    Route("/score", self.score, methods=["POST"]),
                    Route("/references", self.references, methods=["POST"]),
                    Route("/health", self.health),
                    Route("/ready", self.ready),
                    Route("/metrics", self.show_metrics),
                ],
                exception_handlers={HTTPException: _no_such, ClientDisconnect: _hung_up, Exception: _fault},
            ),
            self.metrics,
        )

    async def score(self, request: Request) -> Response:
        """Rewards for items; as one object, or line by line as they finish."""
        refusal = self._refuse(request)
        if refusal is not None:
            return refusal
        try:
            body = await _read(request, self.settings.body_bytes)
            wanted = score_request(body, self.settings.items_per_request)
        except BadRequest as err:
            return error(request, err.status, err.code, str(err))
        deadline_s = min(wanted.deadline_s or self.settings.deadline_s, self.settings.deadline_s)
        answers: list[bytes | None] = []
        open_items: list[tuple[int, Item]] = []
        for index, asked in enumerate(wanted.asked):
            item, refused = self._resolve(asked)
            answers.append(refused)
            if refused is None:
                open_items.append((index, item))
        keys = self.desk.keys([item for _, item in open_items])
        try:
            self.desk.admit(keys)
        except Busy as err:
            return self._later(request, 429, "queue_full", str(err))
        work = [(index, item, key) for (index, item), key in zip(open_items, keys)]
        if NDJSON in request.headers.get("accept", ""):
            ready = [with_id(wanted.asked[i].item.id, answer) for i, answer in enumerate(answers) if answer is not None]
            return StreamingResponse(self._stream(ready, work, deadline_s), media_type=NDJSON)
        await self._fill(request, answers, work, deadline_s)
        entries = [with_id(asked.item.id, answer) for asked, answer in zip(wanted.asked, answers) if answer is not None]
        return Response(b'{"items":[' + b",".join(entries) + b"]}", media_type="application/json")

    async def references(self, request: Request) -> Response:
        """Decompose references, once ever, and give each set an id."""
        refusal = self._refuse(request)
        if refusal is not None:
            return refusal
        try:
            body = await _read(request, self.settings.body_bytes)
            items = references_request(body, self.settings.items_per_request)
        except BadRequest as err:
            return error(request, err.status, err.code, str(err))
        # One after the other: a prefill must not crowd out scoring; whoever wants more sends several requests.
        entries = [await self._reference(item) for item in items]
        return Response(json.dumps({"items": entries}).encode(), media_type="application/json")

    async def health(self, request: Request) -> Response:
        """The process answers."""
        return _json({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """May items be sent? 503 with the reason while draining or without a backend."""
        reason = "the server is draining" if self.draining else self.core.unavailable()
        backends = [
            {"role": s.role, "name": s.name, "breaker": s.breaker, "retry_after_s": round(s.retry_after_s, 3)}
            for s in self.core.backends()
        ]
        shown = {
            "ready": reason is None,
            "reason": reason,
            "version": self.core.version,
            "rules": self.rules,
            "items_per_request": self.settings.items_per_request,
            "backends": backends,
        }
        return _json(shown, 200 if reason is None else 503)

    async def show_metrics(self, request: Request) -> Response:
        """Prometheus text."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _refuse(self, request: Request) -> Response | None:
        if self._token is not None:
            given = request.headers.get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, self._token):
                what = "a wrong token" if given else "no token"
                refusal = error(request, 401, "unauthorized", f"{what} was given; wanted Authorization: Bearer <token>")
                refusal.headers["www-authenticate"] = "Bearer"
                return refusal
        if self.draining:
            return self._later(request, 503, "draining", "the server is shutting down; ask another one, or again later")
        return None

    def _later(self, request: Request, status: int, code: str, message: str) -> Response:
        response = error(request, status, code, message)
        response.headers["retry-after"] = str(self.settings.retry_after_s)
        return response

    def _resolve(self, asked: Asked) -> tuple[Item, bytes | None]:
        """The item with its references, or the encoded failure that it ends with."""
        item = asked.item
        if asked.reference_id is not None:
            found = self.registry.find(asked.reference_id)
            if found is None:
                return item, _failed(
                    item, Failure.REFERENCE_MISSING, f"reference_id={asked.reference_id!r:.80} is unknown"
                )
            problem, references = found
            if problem != item.problem:
                return item, _failed(
                    item, Failure.REFERENCE_MISSING, f"reference_id={asked.reference_id} belongs to another problem"
                )
            item = with_references(item, references)
        reason = too_large(item, self.settings.text_chars)
        return item, None if reason is None else _failed(item, Failure.DECOMPOSER_FAILED, reason)

    async def _fill(
        self, request: Request, answers: list[bytes | None], work: list[tuple[int, Item, bytes]], deadline_s: float
    ) -> None:
        """Put the answers into their places; a client that hangs up ends the work."""
        waiting = []
        for index, item, key in work:
            known = self.desk.known(key)
            if known is not None:
                answers[index] = known
            else:
                waiting.append((index, item, key))
        if not waiting:
            return
        gone: asyncio.Future[Any] = asyncio.create_task(_gone(request))
        done: asyncio.Future[Any] = asyncio.gather(
            *(self.desk.answer(item, key, deadline_s) for _, item, key in waiting)
        )
        try:
            await asyncio.wait({gone, done}, return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                raise ClientDisconnect
            for (index, _, _), answer in zip(waiting, done.result()):
                answers[index] = answer
        finally:
            gone.cancel()
            done.cancel()

    async def _stream(
        self, ready: list[bytes], work: list[tuple[int, Item, bytes]], deadline_s: float
    ) -> AsyncIterator[bytes]:
        for line in ready:
            yield line + b"\n"

        async def one(item: Item, key: bytes) -> bytes:
            return with_id(item.id, await self.desk.answer(item, key, deadline_s))

        tasks = [asyncio.create_task(one(item, key)) for _, item, key in work]
        try:
            for finished in asyncio.as_completed(tasks):
                yield await finished + b"\n"
        finally:
            # The client may be gone: whoever is left is not waited for.
            for task in tasks:
                task.cancel()

    async def _reference(self, item: Item) -> dict[str, Any]:
        reason = too_large(item, self.settings.text_chars)
        failure, steps = Failure.DECOMPOSER_FAILED, []
        if reason is None:
            try:
                for number, text in enumerate(item.references):
                    found = await asyncio.wait_for(
                        self.core.decompose(item.problem, text, item.domain), self.settings.deadline_s
                    )
                    steps.append(len(found))
                    if not found and reason is None:
                        failure, reason = Failure.REFERENCE_MISSING, f"no step was found in references[{number}]"
            except (TimeoutError, asyncio.TimeoutError) as err:  # two classes on Python 3.10
                failure, reason = Failure.TIMEOUT, str(err) or f"not decomposed within {self.settings.deadline_s:g} s"
            except ConnectionError as err:
                failure, reason = Failure.BACKEND_UNAVAILABLE, str(err)
            except ServiceError as err:
                reason = str(err)
        ok = reason is None
        return {
            "id": item.id,
            "status": "ok" if ok else "failed",
            "reference_id": self.registry.add(item.problem, item.references) if ok else None,
            "steps": steps,
            "failure": None if ok else failure.value,
            "error": reason,
        }


async def _read(request: Request, limit: int) -> bytes:
    """The body. Raises BadRequest beyond `limit`, after reading on a little so that the client sees the answer."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size <= limit:
            parts.append(part)
        elif size > 4 * limit:
            break
    if size > limit:
        raise BadRequest(f"the body is larger than {limit} bytes (gsrm.server.body_bytes)", "body_too_large", 413)
    return b"".join(parts)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _no_such(request: Request, err: Exception) -> Response:
    assert isinstance(err, HTTPException)
    return error(request, err.status_code, "no_such_route", f"{request.method} {request.url.path}: {err.detail}")


def _hung_up(request: Request, err: Exception) -> Response:
    return Response(status_code=499)  # read by nobody; the log's word for it


def _fault(request: Request, err: Exception) -> Response:
    # Raised again by starlette after this answer: the traceback is logged around the app.
    return error(request, 500, "fault", "a fault inside the server; its log has the traceback")


def _json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value).encode(), status, media_type="application/json")


def _failed(item: Item, failure: Failure, reason: str) -> bytes:
    return encode(failed(item.id, failure, reason))
