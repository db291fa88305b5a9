"""How the server ends: what it took on is finished or fails with a name, and nothing new is begun."""

import asyncio
import json
import logging
import signal
import threading
import time
import types

import httpx2
import pytest

from rlkd_nemo.config.load import load
from rlkd_nemo.config.schema import GsrmServer
from rlkd_nemo.errors import BackendUnavailable, ConfigError
from rlkd_nemo.gsrm.service import run, serve
from rlkd_nemo.gsrm.service.serve import JsonLines, token
from tests.gsrm.service.serving import ScriptedCore, item, reward, running, until


def test_a_server_needs_no_problems(tmp_path):
    cfg = load("rlkd_demo", ["task=prompts", "task.path=no/such/file", f"exp_manager.exp_dir={tmp_path}"])
    assert run.core(cfg).version == "text-1|normalised|first|prefix|teacher"


def in_background(core, work):
    found = {}
    thread = threading.Thread(target=lambda: found.update(work()))
    thread.start()
    until(lambda: core.at_once)
    return thread, found


def test_a_drain_finishes_what_is_in_flight_and_refuses_the_rest(tmp_path):
    with running(ScriptedCore(), tmp_path) as server:
        thread, found = in_background(server.core, lambda: server.score(item("held", "hold on")))
        server.server.handle_exit(signal.SIGTERM, None)
        time.sleep(0.3)
        refused = server.http.post("/score", json={"items": [item("new", "new")]})
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "draining"
        assert int(refused.headers["retry-after"]) >= 1
        ready = server.http.get("/ready")
        assert ready.status_code == 503 and "draining" in ready.json()["reason"]
        assert server.http.get("/health").status_code == 200
        assert not server.ended.is_set()
        server.core.go.set()
        thread.join(240)
        assert found["held"]["reward"] == reward("hold on")
        assert server.ended.wait(240) and not server.server.gave_up


def test_after_the_limit_what_is_left_fails_with_a_name(tmp_path):
    with running(ScriptedCore(), tmp_path, drain_s=0.3) as server:
        thread, found = in_background(server.core, lambda: server.score(item("held", "hold on")))
        server.server.handle_exit(signal.SIGTERM, None)
        thread.join(240)
        assert found["held"]["failure"] == "backend_unavailable" and "shutting down" in found["held"]["error"]
        assert server.ended.wait(240) and server.server.gave_up == 1 and server.core.cancelled == 1


def test_an_open_address_wants_a_token(monkeypatch):
    monkeypatch.delenv("GSRM_TOKEN", raising=False)
    assert token(GsrmServer(), "GSRM_TOKEN") is None
    with pytest.raises(ConfigError, match="GSRM_TOKEN"):
        token(GsrmServer(host="0.0.0.0"), "GSRM_TOKEN")
    monkeypatch.setenv("GSRM_TOKEN", "s")
    assert token(GsrmServer(host="0.0.0.0"), "GSRM_TOKEN") == "s"


def test_logs_are_json_lines_with_the_request(tmp_path, caplog):
    caplog.set_level(logging.DEBUG, "rlkd_nemo.gsrm.service")
    with running(ScriptedCore(), tmp_path) as server:
        headers = {"x-request-id": "r1"}
        server.http.post("/score", json={"items": [item("a", "bug")]}, headers=headers)
        server.http.post("/score", content=b"{", headers=headers)
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    fault = next(line for line in lines if "traceback" in line)
    assert fault["item_id"] == "a" and "planted fault" in fault["traceback"] and fault["level"] == "ERROR"
    requests = [line for line in lines if line.get("request_id") == "r1"]
    assert [(line["path"], line["status"]) for line in requests] == [("/score", 200), ("/score", 400)]


class ComesLater(ScriptedCore):
    """Its endpoints are there at the third try."""

    tries = 0

    async def start(self):
        self.tries += 1
        if self.tries < 3:
            raise BackendUnavailable("nobody there yet")


def test_the_server_waits_for_its_endpoints(monkeypatch, tmp_path):
    monkeypatch.setattr(serve, "_RETRY_S", 0.05)
    core = ComesLater()
    app = types.SimpleNamespace(core=core, settings=GsrmServer(startup_s=10))
    assert asyncio.run(serve._started(app)) and core.tries == 3
    app = types.SimpleNamespace(core=ComesLater(), settings=GsrmServer(startup_s=0))
    with pytest.raises(BackendUnavailable, match="nobody there yet"):
        asyncio.run(serve._started(app))
    monkeypatch.setattr(serve, "stop_requested", lambda: True)
    app = types.SimpleNamespace(core=ComesLater(), settings=GsrmServer(startup_s=10))
    assert not asyncio.run(serve._started(app))


def test_one_connection_too_many_is_told_so(tmp_path):
    with running(ScriptedCore(), tmp_path, max_connections=2) as server:
        assert server.http.get("/health").status_code == 200  # keeps its connection
        with httpx2.Client(base_url=server.url) as second, httpx2.Client(base_url=server.url) as third:
            assert second.get("/health").status_code == 200
            assert third.get("/health").status_code == 503
            second.close()
            until(lambda: third.get("/health").status_code == 200)


def test_room_is_made_for_the_connections(monkeypatch, caplog):
    limits = {"now": (1024, 8000)}
    monkeypatch.setattr(serve.resource, "getrlimit", lambda which: limits["now"])
    monkeypatch.setattr(serve.resource, "setrlimit", lambda which, pair: limits.update(now=pair))
    serve._make_room(100)
    assert limits["now"] == (1024, 8000)
    serve._make_room(4096)
    assert limits["now"] == (4096 + 512, 8000) and not caplog.records
    serve._make_room(9000)
    assert limits["now"] == (8000, 8000) and "gsrm.server.max_connections=9000 wants 9512" in caplog.text
