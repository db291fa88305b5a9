"""Running the app: one process, signals, and an end that loses nothing it took on."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import signal
import time
from types import FrameType

import uvicorn

from rlkd_nemo.config.schema import GsrmServer
from rlkd_nemo.errors import ConfigError, ServiceError
from rlkd_nemo.gsrm.service.app import GsrmApp
from rlkd_nemo.lifecycle.signals import stop_requested

log = logging.getLogger(__name__)
_RETRY_S = 2.0
_OTHER_FILES = 512  # connections to the endpoints, the store, the verdicts
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_FIELDS = ("request_id", "item_id", "path", "status", "seconds", "failure")


def token(settings: GsrmServer, variable: str) -> str | None:
    """The bearer token of environment variable `variable`.

    Raises: ConfigError where there is none although the server would be open to other machines.
    """
    value = os.environ.get(variable) or None
    if value is None and settings.host not in _LOOPBACK:
        raise ConfigError(
            f"environment variable {variable} (gsrm.token_env) is not set, but gsrm.server.host={settings.host} is "
            "open to other machines; set the variable, or host=127.0.0.1"
        )
    return value


async def serve(app: GsrmApp) -> None:
    """Listen until SIGTERM or SIGINT; then refuse new items, finish those taken on within `drain_s`, and end.

    The core is started before the port opens, for up to `startup_s`, and closed at the end. A second signal does not wait.
    Raises: what the core's start raises; ConfigError when the port cannot be had; ServiceError when requests had to be
    given up after `drain_s` (their items got a typed failure).
    """
    _make_room(app.settings.max_connections)
    try:
        if not await _started(app):
            return
        server = GsrmWebServer(app)
        try:
            await server.serve()
        except SystemExit as err:  # how uvicorn says that the address cannot be had; it has logged why
            settings = app.settings
            raise ConfigError(
                f"gsrm.server.host={settings.host}, port={settings.port} cannot be listened on; is another server "
                "running there?"
            ) from err
        if server.gave_up:
            raise ServiceError(
                f"{server.gave_up} requests were given up after gsrm.server.drain_s={app.settings.drain_s:g} s"
            )
    finally:
        await app.core.aclose()


def _make_room(connections: int) -> None:
    """Allow this process as many open files as `connections` need, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        log.warning(
            "this process may open %d files, but gsrm.server.max_connections=%d wants %d; raise the limit (ulimit -n) or "
            "lower the key",
            allowed,
            connections,
            wanted,
        )


async def _started(app: GsrmApp) -> bool:
    """Start the core, waiting for endpoints that are not there yet; False when told to stop meanwhile."""
    end = time.monotonic() + app.settings.startup_s
    while True:
        try:
            await app.core.start()
            return not stop_requested()
        except ServiceError as err:
            if time.monotonic() >= end:
                raise
            log.warning("waiting for the endpoints: %s", err)
        until = min(time.monotonic() + _RETRY_S, end)
        while time.monotonic() < until:
            if stop_requested():
                return False
            await asyncio.sleep(0.1)


class GsrmWebServer(uvicorn.Server):
    """uvicorn, but it goes on answering (503) while what is in flight finishes."""

    def __init__(self, app: GsrmApp) -> None:
        settings = app.settings
        super().__init__(
            uvicorn.Config(
                app.asgi,
                host=settings.host,
                port=settings.port,
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                # uvicorn counts the connection that asks, too.
                limit_concurrency=settings.max_connections + 1,
                # After the drain nothing is in flight: only idle connections are left to close.
                timeout_graceful_shutdown=5,
            )
        )
        self.app, self.gave_up = app, 0
        self._until: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; the second time end at once."""
        if self._until is None:
            self.app.draining = True
            self._until = time.monotonic() + self.app.settings.drain_s
            log.info("%s: finishing %d requests in flight", signal.Signals(sig).name, self.app.asgi.active)
        else:
            self._until = 0.0

    async def startup(self, sockets=None) -> None:
        """As uvicorn's, and say where."""
        await super().startup(sockets)
        settings = self.app.settings
        if self.started:
            port = self.servers[0].sockets[0].getsockname()[1]
            log.info("listening on http://%s:%d, %s", settings.host, port, self.app.core.version)

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: is it over?"""
        if self._until is not None:
            if not self.app.asgi.active:
                return True
            if time.monotonic() > self._until:
                log.warning("%d requests are given up after drain_s", self.app.asgi.active)
                self.gave_up = self.app.asgi.active
                self.app.desk.abort()
                await asyncio.sleep(0.2)  # their typed failures go out
                return True
        return await super().on_tick(counter)


class JsonLines(logging.Formatter):
    """Log records as JSON, one line each, with the request's id where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {
            "time": round(record.created, 3),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: getattr(record, name) for name in _FIELDS if hasattr(record, name)},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logs(level: str) -> None:
    """JSON lines on stderr; libraries from WARNING up."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("rlkd_nemo").setLevel(level)
