"""Around every request: an id, one log line, counters, and an answer even where the program has a fault."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlkd_nemo.gsrm.service.metrics import Metrics

log = logging.getLogger(__name__)
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_PATHS = {"/score", "/references", "/health", "/ready", "/metrics"}


class Observed:
    """Wraps an app; `active` counts requests to /score and /references whose answer is not out yet.

    The request's id is the client's `X-Request-Id` where that is short and plain, else a new one; the answer carries it.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics, self.active = app, metrics, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI call."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope["request_id"] = request_id
        path = scope["path"] if scope["path"] in _PATHS else "other"
        works = path in ("/score", "/references")
        status = 0

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        started = time.monotonic()
        self.active += works
        try:
            await self.app(scope, receive, note)
        except Exception:
            log.exception("a fault inside the server", extra={"request_id": request_id, "path": path})
            self.metrics.faults.inc()
        finally:
            self.active -= works
            self.metrics.requests.labels(path, str(status)).inc()
            level = logging.DEBUG if status < 400 else logging.INFO if status < 500 else logging.WARNING
            if log.isEnabledFor(level):
                seconds = round(time.monotonic() - started, 6)
                fields = {"request_id": request_id, "path": path, "status": status, "seconds": seconds}
                log.log(level, "%s %s", scope["method"], path, extra=fields)


def error(request: Request, status: int, code: str, message: str) -> Response:
    """The error of a request: `{"error": {"code", "message", "request_id"}}`."""
    body: dict[str, Any] = {"error": {"code": code, "message": message, "request_id": request.scope["request_id"]}}
    return Response(json.dumps(body).encode(), status, media_type="application/json")


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ID.fullmatch(value):
            return value.decode()
    return uuid.uuid4().hex[:16]
