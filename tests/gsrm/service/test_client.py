"""The client over real HTTP: results keep their ids, nothing is lost, and what fails has a name."""

import asyncio
import socket
import threading
import time

import pytest
import uvicorn
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from rlkd_nemo.config.schema import GsrmService
from rlkd_nemo.errors import ConfigError, ServiceError
from rlkd_nemo.gsrm.service.client import GsrmClient
from rlkd_nemo.gsrm.service.core import Item
from rlkd_nemo.types import Failure
from tests.gsrm.service.serving import ScriptedCore, reward, running, until


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(ScriptedCore(), tmp_path_factory.mktemp("ids")) as server:
        yield server


@pytest.fixture
def client():
    made = []

    def make(*urls, token=None, **settings):
        patient = {"backoff_s": 0.05, "deadline_s": 20.0, "startup_s": 0.5, **settings}
        made.append(GsrmClient(GsrmService(urls=list(urls), **patient), token))
        return made[-1]

    yield make
    for each in made:
        each.close()


def items(*responses):
    return [Item(f"i{n}", "p", response, ("m",)) for n, response in enumerate(responses)]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_results_keep_ids_and_order(server, client):
    asked = items("sleep 0.3 a", *(f"text {n}" for n in range(40)), "down", "", "half \ud800 pair")
    found = client(server.url, items_per_request=3).score(asked)
    assert [result.id for result in found] == [item.id for item in asked]
    assert [result.reward for result in found[:41]] == [reward(item.response) for item in asked[:41]]
    assert (found[41].failure, found[41].reward, found[41].error) == (Failure.JUDGE_FAILED, None, "the judge is down")
    assert (found[42].failure, found[42].reward) == (Failure.UNPARSEABLE_STUDENT, 0.0)
    assert found[43].reward == reward("half ? pair")
    assert found[0].student_steps[0].meta == "m" and found[0].matched == 1


def test_two_servers_share_the_work_and_one_that_is_gone_costs_nothing(server, client, tmp_path):
    with running(ScriptedCore(), tmp_path) as other:
        before = len(server.core.scored)
        asked = items(*(f"shared {n}" for n in range(32)))
        both = client(server.url, other.url, items_per_request=4)
        assert [r.reward for r in both.score(asked)] == [reward(item.response) for item in asked]
        assert len(server.core.scored) - before == 16 and len(other.core.scored) == 16
    found = both.score(items(*(f"one gone {n}" for n in range(32))))
    assert {result.status for result in found} == {"ok"}


def test_a_server_that_comes_back_loses_nothing(client, tmp_path):
    port = free_port()
    asked = items(*(f"hold {n}" for n in range(8)))
    ours = client(f"http://127.0.0.1:{port}", attempts=8, backoff_s=0.2, deadline_s=60)
    with running(ScriptedCore(), tmp_path, port=port) as first:
        future = ours.submit(asked)
        until(lambda: first.core.at_once == 8)
        for connection in list(first.server.server_state.connections):  # as when the process is killed
            connection.transport.abort()
    with running(ScriptedCore(), tmp_path, port=port) as second:
        second.core.go.set()
        found = future.result(60)
    assert [result.reward for result in found] == [reward(item.response) for item in asked]


def test_nobody_there_is_a_typed_failure(client):
    started = time.monotonic()
    (found,) = client(f"http://127.0.0.1:{free_port()}", attempts=3).score(items("x"))
    assert (found.status, found.failure) == ("failed", Failure.BACKEND_UNAVAILABLE) and "ConnectError" in found.error
    assert 0.05 < time.monotonic() - started < 15  # by its attempts, not at the deadline of 20 s


def test_a_server_that_hangs_ends_at_the_deadline(server, client):
    # Nothing but the deadline ends the first one, and the server keeps it: the client's own would say so otherwise.
    slow, quick = client(server.url, deadline_s=2.0).score(items("hold", "quick"))
    assert slow.failure is Failure.TIMEOUT and "not scored within" in slow.error and quick.reward == reward("quick")


def test_a_full_queue_is_waited_for(client, tmp_path):
    with running(ScriptedCore(), tmp_path, concurrency=1, queue_items=1, items_per_request=2) as server:
        asked = items(*(f"sleep 0.2 {n}" for n in range(6)))
        found = client(server.url, items_per_request=1, attempts=1).score(asked)
    assert [result.reward for result in found] == [reward(item.response) for item in asked]


class Answers:
    """A web server that is no GSRM server, or a broken one."""

    def __init__(self, make):
        self.make, self.asked = make, 0

    async def __call__(self, scope, receive, send):
        self.asked += 1
        await self.make()(scope, receive, send)


def broken(text):
    async def lines():
        yield text

    return lambda: StreamingResponse(lines(), media_type="application/x-ndjson")


@pytest.mark.parametrize(
    ("make", "asked", "told"),
    [
        (lambda: PlainTextResponse("<html>busy</html>", 502), 3, "502"),
        (lambda: PlainTextResponse("<html>login</html>"), 1, "no GSRM server"),
        (lambda: Response(status_code=404), 1, "404"),
        (broken(b'{"id": "i0", "stat'), 3, "no result"),
        (broken(b'{"id": "i0", "status": "ok", "reward": null, "failure": null}\n'), 3, "no result"),
        (broken(b""), 3, "1 of 1 results missing"),
    ],
)
def test_odd_answers_are_typed_failures(client, make, asked, told):
    app = Answers(make)
    port = free_port()
    web = uvicorn.Server(uvicorn.Config(app, port=port, lifespan="off", log_config=None))
    thread = threading.Thread(target=asyncio.run, args=(web.serve(),), daemon=True)
    thread.start()
    until(lambda: web.started)
    (found,) = client(f"http://127.0.0.1:{port}", attempts=3).score(items("x"))
    web.should_exit = True
    thread.join(240)
    assert (found.failure, found.reward) == (Failure.BACKEND_UNAVAILABLE, None) and told in found.error
    assert app.asked == asked  # a refusal is not tried again


def test_a_dead_server_at_start_up_is_one_clear_error(client):
    url = f"http://127.0.0.1:{free_port()}"
    started = time.monotonic()
    with pytest.raises(
        ServiceError, match=r"no GSRM server is ready after gsrm.service.startup_s=0.5 s .*ConnectError"
    ):
        client(url).check({})
    assert time.monotonic() - started < 20  # of 120 s that are usual


def test_start_up_compares_rules_and_tries_the_token(server, client, tmp_path):
    dead = f"http://127.0.0.1:{free_port()}"
    assert client(dead, server.url).check({"norm": "teacher"}) == "scripted-1"
    with pytest.raises(ConfigError, match=r"scores with norm=teacher, this run wants gsrm.norm=max"):
        client(server.url).check({"norm": "max"})
    with running(ScriptedCore(), tmp_path, token="secret") as guarded:
        assert client(guarded.url, token="secret").check({"norm": "teacher"}) == "scripted-1"
        with pytest.raises(ConfigError, match=r"401 unauthorized: a wrong token"):
            client(guarded.url, token="wrong").check({"norm": "teacher"})
        (found,) = client(guarded.url).score(items("x"))
        assert found.failure is Failure.BACKEND_UNAVAILABLE and "no token" in found.error and found.detail["final"]
