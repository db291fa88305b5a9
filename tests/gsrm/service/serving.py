"""A real server in a thread of the test, around a core whose answers the test scripts."""

import asyncio
import contextlib
import hashlib
import threading
import time

import httpx2

from rlkd_nemo.config.schema import GsrmServer
from rlkd_nemo.errors import ServiceError
from rlkd_nemo.gsrm.service.app import GsrmApp
from rlkd_nemo.gsrm.service.core import Result
from rlkd_nemo.gsrm.service.registry import ReferenceRegistry
from rlkd_nemo.gsrm.service.serve import GsrmWebServer
from rlkd_nemo.types import Failure, Step


class ScriptedCore:
    """Does what the response says: `hold` (until `go` is set), `sleep 0.2`, `down`, `bug`; any other text has the reward
    that `reward` gives it.
    """

    version = "scripted-1"

    def __init__(self):
        self.scored, self.cancelled, self.at_once, self.most_at_once, self.reason = [], 0, 0, 0, None
        self.go = threading.Event()

    async def start(self):
        pass

    async def score(self, item, *, deadline_s):
        self.scored.append(item)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            word, _, rest = item.response.partition(" ")
            if word == "sleep":
                await asyncio.sleep(float(rest.split()[0]))
            while word == "hold" and not self.go.is_set():
                await asyncio.sleep(0.01)
            if word == "bug":
                raise RuntimeError("a planted fault")
            if word == "down":
                return Result(item.id, "failed", None, failure=Failure.JUDGE_FAILED, error="the judge is down")
            if not item.response.strip():
                return Result(item.id, "ok", 0.0, failure=Failure.UNPARSEABLE_STUDENT)
            return Result(item.id, "ok", reward(item.response), 1, (Step("m"),), (Step("m"),), ({"student": 0},))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.at_once -= 1

    async def decompose(self, problem, text, domain=None):
        if text == "down":
            raise ServiceError("the decomposer is down")
        return [Step(line) for line in text.splitlines()]

    def backends(self):
        return []

    def unavailable(self):
        return self.reason

    async def aclose(self):
        pass


def reward(text):
    """A number that only this text has."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:6], 16) / 16**6


def until(condition, seconds=240):
    """Wait until `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


class Running:
    """A server that listens; `url`, its app, and a plain HTTP client."""

    def __init__(self, core, directory, token, settings, port, rules):
        self.core, self.ended = core, threading.Event()
        settings = GsrmServer(port=port, **settings)
        self.up = threading.Event()

        async def run():
            self.app = GsrmApp(core, settings, ReferenceRegistry(directory), token=token, rules=rules)
            self.server = GsrmWebServer(self.app)
            self.up.set()
            await self.server.serve()
            self.ended.set()

        self.thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
        self.thread.start()
        assert self.up.wait(240)
        until(lambda: self.server.started or not self.thread.is_alive())
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self.http = httpx2.Client(base_url=self.url, headers=headers, timeout=240)

    def score(self, *items, **body):
        """POST /score; the answer's items by id."""
        answer = self.http.post("/score", json={"items": list(items), **body})
        assert answer.status_code == 200, answer.text
        return {entry["id"]: entry for entry in answer.json()["items"]}

    def stop(self):
        self.http.close()
        self.server.should_exit = True
        self.thread.join(240)
        assert not self.thread.is_alive()


@contextlib.contextmanager
def running(core, directory, *, token=None, port=0, rules=None, **settings):
    """A server with these settings (of GsrmServer) until the block ends."""
    server = Running(core, directory, token, settings, port, rules or {"norm": "teacher"})
    try:
        yield server
    finally:
        server.stop()


def item(item_id="a", response="text", problem="p", references=("m",), **more):
    """One entry of a request."""
    return {"id": item_id, "problem": problem, "response": response, "references": list(references), **more}
