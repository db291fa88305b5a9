"""The server over real HTTP: what it answers, and what it makes of bad input."""

import json
import socket
import threading

import pytest

from rlkd_nemo.config.schema import Gsrm
from rlkd_nemo.gsrm.service.scoring import Scoring
from tests.gsrm.service.serving import ScriptedCore, item, reward, running, until


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(ScriptedCore(), tmp_path_factory.mktemp("ids"), text_chars=500_000, body_bytes=4_000_000) as server:
        yield server


def post(server, body, **headers):
    return server.http.post("/score", content=body, headers={"content-type": "application/json", **headers})


def test_results_keep_ids_and_order(server):
    answer = server.http.post("/score", json={"items": [item(name, name) for name in ("z", "a", "m")]})
    entries = answer.json()["items"]
    assert [entry["id"] for entry in entries] == ["z", "a", "m"]
    assert [entry["reward"] for entry in entries] == [reward(name) for name in ("z", "a", "m")]
    first = {key: entries[0][key] for key in ("status", "matched", "failure", "steps")}
    assert first == {"status": "ok", "matched": 1, "failure": None, "steps": [{"student": 0}]}
    assert entries[0]["student_steps"] == [{"meta": "m", "question": None, "answer": None}]
    assert server.http.post("/score", json={"items": []}).json() == {"items": []}


def test_lines_come_as_they_finish(server):
    items = [item("slow", "hold x"), item("fast", "fast"), item("broken", "down x")]
    seen = {}
    with server.http.stream("POST", "/score", json={"items": items}, headers={"accept": "application/x-ndjson"}) as got:
        assert got.headers["content-type"].startswith("application/x-ndjson")
        for line in got.iter_lines():
            seen[json.loads(line)["id"]] = json.loads(line)
            if len(seen) == 2:  # the others are here before the slow one has ended
                server.core.go.set()
    server.core.go.clear()
    assert list(seen)[-1] == "slow" and seen["slow"]["reward"] == reward("hold x")
    assert seen["broken"]["failure"] == "judge_failed" and seen["broken"]["reward"] is None


@pytest.mark.parametrize(
    ("body", "status", "code", "told"),
    [
        (b'{"items": [{"id": "\xff"}]}', 400, "invalid_utf8", "byte"),
        (b'{"items": [', 400, "invalid_json", "not JSON"),
        (b'{"items": [{"id": "a\x01"}]}', 400, "invalid_json", "ontrol character"),
        (b"[" * 100_000, 400, "invalid_json", "not JSON"),
        (b"[]", 400, "bad_request", "items"),
        (b'{"items": [7]}', 400, "bad_request", "items[0] is int"),
        (b'{"items": [], "itmes": 1}', 400, "bad_request", "itmes"),
        (b'{"items": [], "deadline_s": 0}', 400, "bad_request", "deadline_s=0"),
        (b'{"items": [], "deadline_s": NaN}', 400, "bad_request", "deadline_s=nan"),
        (json.dumps({"items": [{"id": "a", "problem": "p"}]}), 400, "bad_request", "reference_id or references"),
        (json.dumps({"items": [item(reference_id="x")]}), 400, "bad_request", "reference_id or references"),
        (json.dumps({"items": [item(references=())]}), 400, "bad_request", "items[0].references"),
        (json.dumps({"items": [item(), item("b", 7)]}), 400, "bad_request", "items[1].response is int"),
        (json.dumps({"items": [item("")]}), 400, "bad_request", "items[0].id"),
        (
            json.dumps({"items": [item(), item("b"), item()]}),
            400,
            "duplicate_id",
            "items[2].id='a' is also that of items[0]",
        ),
        (json.dumps({"items": [item(response="\ud800")]}), 400, "invalid_utf8", "surrogate"),
        (json.dumps({"items": [item(str(n)) for n in range(257)]}), 413, "too_many_items", "257"),
        (b" " * 4_000_001, 413, "body_too_large", "4000000"),
        (b" " * 30_000_000, 413, "body_too_large", "4000000"),
    ],
)
def test_a_request_that_cannot_be_read_is_one_clear_error(server, body, status, code, told):
    answer = post(server, body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code and told in error["message"]
    assert error["request_id"] == answer.headers["x-request-id"]


def test_odd_responses_have_a_result_of_their_own(server):
    unknown = {"id": "unknown", "problem": "p", "response": "x", "reference_id": "../../etc/passwd"}
    found = server.score(
        item("empty", ""),
        item("no think", "just text"),
        item("open think", "<think>[Meta-reasoning 1]: a"),
        item("controls", "a\x00\x1b[31m\u2028b"),
        item("long", "x" * 1_000_000),
        item("500 steps", "\n".join(f"[Meta-reasoning {n}]: s" for n in range(500))),
        item("bug", "bug 1"),
        unknown,
        {**unknown, "id": "unknown 2", "reference_id": "0" * 32},
    )
    assert (found["empty"]["status"], found["empty"]["reward"], found["empty"]["failure"]) == (
        "ok",
        0.0,
        "unparseable_student",
    )
    for name in ("no think", "open think", "controls", "500 steps"):
        assert found[name]["status"] == "ok" and found[name]["reward"] is not None, name
    assert found["controls"]["reward"] == reward("a\x00\x1b[31m\u2028b")
    for name, failure, told in (
        ("long", "decomposer_failed", "1000000 characters"),
        ("bug", "backend_unavailable", "fault inside"),
        ("unknown", "reference_missing", "unknown"),
        ("unknown 2", "reference_missing", "unknown"),
    ):
        entry = found[name]
        assert (entry["status"], entry["reward"], entry["failure"]) == ("failed", None, failure) and told in entry[
            "error"
        ]


def test_equal_items_are_scored_once(server):
    before = len(server.core.scored)
    found = server.score(item("a", "sleep 0.1 once"), item("b", "sleep 0.1 once"), item("c", "sleep 0.1 once", "q"))
    assert found["a"]["reward"] == found["b"]["reward"] == found["c"]["reward"]
    assert len(server.core.scored) == before + 2  # another problem is another item
    server.score(item("d", "sleep 0.1 once"))
    assert len(server.core.scored) == before + 2
    assert server.score(item("e", "down once"))["e"]["status"] == "failed"
    assert server.score(item("e", "down once"))["e"]["status"] == "failed"
    assert len(server.core.scored) == before + 4  # a failure is not kept
    server.score(item("f", "sleep 0.1 once", references=("other",)), item("g", "sleep 0.1 once", domain="code"))
    server.score(item("h", "sleep 0.1 once", domain=""))
    assert len(server.core.scored) == before + 7  # nor is the answer to another reference, or under another prompt


def test_an_item_ends_at_its_deadline_and_its_work_with_it(server):
    cancelled = server.core.cancelled
    # Nothing but the deadline ends the first one.
    found = server.score(item("a", "hold a"), item("b", "quick"), deadline_s=2.0)
    assert found["a"]["failure"] == "timeout" and found["a"]["reward"] is None and found["b"]["status"] == "ok"
    until(lambda: server.core.cancelled == cancelled + 1)


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
def test_a_client_that_hangs_up_ends_its_work(server, accept):
    cancelled, begun = server.core.cancelled, len(server.core.scored)
    body = json.dumps({"items": [item("a", f"hold {accept}")]}).encode()
    head = f"POST /score HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + body)
        until(lambda: len(server.core.scored) > begun)
        assert server.core.cancelled == cancelled
    until(lambda: server.core.cancelled == cancelled + 1)


def test_references_get_an_id_and_keep_it(server):
    sets = [
        {"id": "one", "problem": "p", "references": ["m\nn", "k"]},
        {"id": "bad", "problem": "p", "references": ["m", "down"]},
        {"id": "none", "problem": "p", "references": [""]},
    ]
    one, bad, none = server.http.post("/references", json={"items": sets}).json()["items"]
    assert one["status"] == "ok" and one["steps"] == [2, 1]
    assert bad["failure"] == "decomposer_failed" and bad["reference_id"] is None
    assert none["failure"] == "reference_missing" and "no step" in none["error"]
    asked = {"id": "x", "problem": "p", "response": "with an id", "reference_id": one["reference_id"]}
    assert server.score(asked)["x"]["status"] == "ok"
    assert server.core.scored[-1].references == ("m\nn", "k")
    other = server.score({**asked, "problem": "q"})["x"]
    assert other["failure"] == "reference_missing" and "another problem" in other["error"]
    server.app.registry._seen.clear()  # as after a restart
    assert server.score({**asked, "response": "later"})["x"]["status"] == "ok"


def test_health_ready_metrics_and_unknown_routes(server):
    assert server.http.get("/health").json() == {"status": "ok"}
    ready = server.http.get("/ready").json()
    assert ready["ready"] and ready["version"] == "scripted-1" and ready["rules"] == {"norm": "teacher"}
    server.core.reason = "every judge is down"
    answer = server.http.get("/ready")
    server.core.reason = None
    assert answer.status_code == 503 and answer.json()["reason"] == "every judge is down"
    page = server.http.get("/metrics").text
    assert 'gsrm_requests_total{path="/ready",status="503"}' in page and "gsrm_cache_bytes" in page
    assert 'gsrm_items_total{failure="judge_failed",status="failed"}' in page
    for method, path, status in (("GET", "/nothing", 404), ("GET", "/score", 405), ("POST", "/health", 405)):
        answer = server.http.request(method, path)
        assert answer.status_code == status and answer.json()["error"]["code"] == "no_such_route"


def test_a_request_id_is_echoed_if_it_is_plain(server):
    assert server.http.get("/health", headers={"x-request-id": "job-7.a"}).headers["x-request-id"] == "job-7.a"
    assert server.http.get("/health", headers={"x-request-id": "a b{}"}).headers["x-request-id"] != "a b{}"


def test_a_token_is_wanted_where_one_is_set(tmp_path):
    with running(ScriptedCore(), tmp_path, token="secret") as server:
        assert server.score(item())["a"]["status"] == "ok"
        for headers in ({"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}, {"authorization": ""}):
            for path in ("/score", "/references"):
                answer = server.http.post(path, json={"items": []}, headers=headers)
                assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
                assert "secret" not in answer.text
        assert server.http.get("/health", headers={"authorization": ""}).status_code == 200


def test_a_full_queue_refuses_whole_requests_and_says_when_to_come_back(tmp_path):
    with running(ScriptedCore(), tmp_path, concurrency=2, queue_items=2, items_per_request=4) as server:
        held = threading.Thread(target=lambda: server.score(*(item(str(n), f"hold {n}") for n in range(4))))
        held.start()
        until(lambda: server.core.at_once == 2)
        answer = server.http.post("/score", json={"items": [item("new", "new")]})
        assert answer.status_code == 429 and answer.json()["error"]["code"] == "queue_full"
        assert int(answer.headers["retry-after"]) >= 1
        # What is in flight already takes no new place.
        found = {}
        again = threading.Thread(target=lambda: found.update(server.score(item("again", "hold 1"))))
        again.start()
        until(lambda: any(flight.waiters == 2 for flight in list(server.app.desk._flights.values())))
        server.core.go.set()
        again.join()
        assert found["again"]["reward"] == reward("hold 1")
        held.join()
        assert len(server.core.scored) == 4
        assert server.core.most_at_once == 2
        assert server.score(item("new", "new"))["new"]["status"] == "ok"


def test_the_cache_is_bounded(tmp_path):
    with running(ScriptedCore(), tmp_path, cache_bytes=20_000) as server:
        for start in range(0, 200, 50):
            server.score(*(item(str(n), f"text {n}") for n in range(start, start + 50)))
        assert 10_000 < server.app.desk.cache.bytes <= 20_000 and len(server.app.desk.cache) < 50
        before = len(server.core.scored)
        server.score(item("new", "text 199"))
        server.score(item("old", "text 0"))
        assert len(server.core.scored) == before + 1  # the oldest went


def test_odd_responses_on_the_real_core(tmp_path):
    many = "\n".join(f"[Meta-reasoning {n}]: step {n} [Answer {n}]: {n}" for n in range(500))
    one = "[Meta-reasoning 1]: step 0 [Answer 1]: 0"
    with running(Scoring(Gsrm(), tmp_path / "store"), tmp_path) as server:
        found = server.score(
            item("500", f"<think>{many}</think>", references=(many,)),
            item("open", f"<think>{one}", references=(one,)),
            item("no think", one, references=(one,)),
            item("controls", f"<think>\x00{one}\x1b\u202e", references=(one,)),
            item("empty", "", references=(one,)),
            item("no steps", "<think>well</think>", references=(one,)),
            item("no reference steps", one, references=("nothing",)),
            item("1 MB", "x" * 1_000_000, references=(one,)),
        )
    assert (found["500"]["reward"], found["500"]["matched"], len(found["500"]["student_steps"])) == (1.0, 500, 500)
    assert [found[name]["reward"] for name in ("open", "no think")] == [1.0, 1.0]
    assert found["controls"]["status"] == "ok" and found["controls"]["reward"] > 0
    for name in ("empty", "no steps"):
        assert (found[name]["reward"], found[name]["failure"]) == (0.0, "unparseable_student")
    assert (found["no reference steps"]["reward"], found["no reference steps"]["failure"]) == (
        None,
        "reference_missing",
    )
    assert (found["1 MB"]["reward"], found["1 MB"]["failure"]) == (None, "decomposer_failed")
