"""Endpoints that work, fail, lie and hang, over real HTTP. The endpoint is a stand-in: rules in place of a model."""

import asyncio
import time
from types import SimpleNamespace

import httpx2
import pytest

from rlkd_nemo.config.schema import Backend
from rlkd_nemo.errors import BackendTimeout, BackendUnavailable, BadReply, ConfigError
from rlkd_nemo.gsrm.service import backends, chat
from rlkd_nemo.gsrm.service.backends import Backends
from rlkd_nemo.gsrm.service.chat import Choice, JsonSchema, Request
from tests.gsrm.service.serving import until

HELLO = Request([{"role": "user", "content": "Say hello."}], 16)
YES_NO = Request(HELLO.messages, 16, Choice(("yes", "no")))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(backends, "FIRST_WAIT_S", 0.01)


def settings(*servers, **more):
    urls = [server if isinstance(server, str) else server.url for server in servers]
    return Backend(**{"urls": urls, "model": "stand-in", "breaker_cool_s": 0.2, **more})


async def ask(config, request=HELLO, within=60.0, stream=False, times=1):
    """Start, ask, close. The reply, or the exception of the last request; and the states at the end."""
    pool = Backends("judge", config)
    reply = None
    try:
        await pool.start()
        for _ in range(times):
            try:
                if stream:
                    reply = await pool.stream(request, time.monotonic() + within, lambda text: None)
                else:
                    reply = await pool.complete(request, time.monotonic() + within)
            except (BackendUnavailable, BackendTimeout, BadReply) as err:
                reply = err
        return reply, pool.mode, pool.states()
    finally:
        await pool.aclose()


@pytest.mark.parametrize(
    ("constrains", "mode"), [(("vllm", "json_schema"), "vllm"), (("json_schema",), "json_schema"), ((), "none")]
)
def test_what_an_endpoint_constrains_is_found_out(endpoint, run, constrains, mode):
    reply, found, (state,) = run(ask(settings(endpoint(constrains=constrains)), YES_NO))
    assert found == mode and chat.chosen(reply.text, ("yes", "no"), mode) == (None if mode == "none" else "yes")
    assert state.breaker == "closed" and state.counters["calls"] >= 2 and state.counters["completion_tokens"] > 0


def test_an_endpoint_that_ignores_the_constraint_asked_for_is_told(endpoint, run):
    with pytest.raises(ConfigError, match=r"ignores the constraint vllm .* gsrm.llm.judge.constrain"):
        run(ask(settings(endpoint(constrains=()), constrain="vllm")))


def test_wrong_model_wrong_key_nobody_there(endpoint, run, monkeypatch):
    server = endpoint(key="secret")
    with pytest.raises(ConfigError, match="HTTP 401.*api_key_env"):
        run(ask(settings(server)))
    with pytest.raises(ConfigError, match="GSRM_KEY is not set"):
        Backends("judge", settings(server, api_key_env="GSRM_KEY"))
    monkeypatch.setenv("GSRM_KEY", "secret")
    assert run(ask(settings(server, api_key_env="GSRM_KEY")))[0].text == "hello"
    with pytest.raises(ConfigError, match="serves stand-in; wanted gsrm.llm.judge.model=other"):
        run(ask(settings(endpoint(), model="other")))
    with pytest.raises(BackendUnavailable, match=r"no judge can be reached \(gsrm.llm.judge.urls\)"):
        run(ask(settings("http://127.0.0.1:9/v1", connect_timeout_s=1)))


FAULTS = [
    ("fail", BackendUnavailable, "HTTP 500", 3),
    ("too_many", BackendUnavailable, "HTTP 429", 3),
    ("reject", BadReply, "HTTP 400", 1),  # 4xx is never tried again
    ("html", BadReply, "HTML|text/html", 3),
    ("other_model", BadReply, "another-model", 3),
    ("hang", BackendTimeout, "in time", 2),
]
ONLY_WHOLE = ("truncated", BadReply, "no JSON", 3)
ONLY_STREAMED = ("broken_stream", BackendUnavailable, "broke off", 1)  # a piece was handed out: the caller decides


@pytest.mark.parametrize(
    ("stream", "fault", "kind", "told", "calls"),
    [(False, *case) for case in [*FAULTS, ONLY_WHOLE]] + [(True, *case) for case in [*FAULTS, ONLY_STREAMED]],
)
def test_every_fault_is_typed(endpoint, run, stream, fault, kind, told, calls):
    server = endpoint()
    # Time is up in the middle of the second call to an endpoint that hangs; all others have time to spare.
    timeout_s, time_s = (2.0, 3.5) if fault == "hang" else (30, 90)

    async def scenario():
        pool = Backends("judge", settings(server, timeout_s=timeout_s, breaker_failures=9, constrain="none"))
        await pool.start()
        server.behaviour.faults[fault] = 1.0
        until = time.monotonic() + time_s
        request = pool.stream(HELLO, until, lambda text: None) if stream else pool.complete(HELLO, until)
        try:
            with pytest.raises(kind, match=told):
                await request
            server.behaviour.faults.clear()
            pool.settings.timeout_s = 60
            assert (await pool.complete(HELLO, time.monotonic() + 60)).text == "hello"
            return pool.states()[0]
        finally:
            await pool.aclose()

    state = run(scenario())
    assert server.counters[fault] == calls and state.counters["failures"] == calls
    assert state.counters["retries"] == calls - 1 and state.in_flight == 0


def test_failover_and_breaker(endpoint, run):
    bad, good = endpoint(), endpoint()

    async def scenario():
        pool = Backends("judge", settings(bad, good, breaker_failures=2, breaker_cool_s=0.3))
        now = [0.0]
        for each in pool._endpoints:
            each.breaker._clock = lambda: now[0]  # however long anything takes here
        await pool.start()
        bad.behaviour.faults["fail"] = 1.0
        try:
            for _ in range(6):
                assert (await pool.complete(HELLO, time.monotonic() + 60)).text == "hello"
            seen = [[s.breaker for s in pool.states()]]
            asked = bad.counters["fail"]
            good.behaviour.faults["fail"] = 1.0
            with pytest.raises(BackendUnavailable):
                await pool.complete(HELLO, time.monotonic() + 60)
            with pytest.raises(BackendUnavailable, match="failed 2 times in a row") as caught:
                await pool.complete(HELLO, time.monotonic() + 60)
            seen.append([s.breaker for s in pool.states()])
            bad.behaviour.faults.clear()
            now[0] = 0.35
            seen.append([s.breaker for s in pool.states()])
            assert (await pool.complete(HELLO, time.monotonic() + 60)).text == "hello"
            return asked, seen, caught.value.retry_after_s, {s.breaker for s in pool.states()}
        finally:
            await pool.aclose()

    asked, seen, after, last = run(scenario())
    assert asked == 2  # then it was left alone
    assert seen == [["open", "closed"], ["open", "open"], ["half_open", "half_open"]] and 0 < after <= 0.3
    assert "closed" in last


def test_a_cancelled_stream_frees_its_slot_and_is_counted(endpoint, run):
    server = endpoint(rule=lambda messages, form: "word " * 4000, token_s=0.005, constrains=("vllm",), slots=1)

    async def scenario():
        pool = Backends("judge", settings(server, constrain="vllm"))
        pool._mode = "vllm"
        pool._endpoints[0].verified = True
        got = []
        task = asyncio.ensure_future(pool.stream(Request(HELLO.messages, 10_000), time.monotonic() + 60, got.append))
        while len(got) < 5:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        until(lambda: server.counters["cancelled"])  # the endpoint has a thread of its own
        counted = server.counters["completion_tokens"]
        await asyncio.sleep(0.1)
        assert server.counters["completion_tokens"] == counted < 4000 and server.counters["cancelled"] == 1
        state = pool.states()[0]
        await pool.aclose()
        return got, state

    got, state = run(scenario())
    assert state.counters["cancelled"] == 1 and state.breaker == "closed"
    assert len(got) <= state.counters["completion_tokens"] <= len(got) + 1


def test_concurrency_is_bounded(endpoint, run):
    server = endpoint(first_token_s=0.05)

    async def scenario():
        pool = Backends("judge", settings(server, max_concurrency=3, constrain="none"))
        await pool.start()
        begun = time.monotonic()
        await asyncio.gather(*(pool.complete(HELLO, begun + 20) for _ in range(12)))
        await pool.aclose()
        return time.monotonic() - begun

    assert run(scenario()) >= 0.2  # four rounds of three


def test_yes_or_no_is_never_read_by_substring():
    options = ("yes", "no")
    for text in ("know", "not", "Yes, both denote", "yes/no cannot decide", "", "yes no", '{"choice": "yes"}'):
        assert chat.chosen(text, options, "vllm") is chat.chosen(text, options, "none") is None
    assert chat.chosen(" Yes.\n", options, "none") == "yes" and chat.chosen("Yes", options, "vllm") is None
    assert chat.chosen('{"choice": "no"}', options, "json_schema") == "no"
    for text in ('{"choice": "maybe"}', '{"verdict": "yes"}', '"yes"', "yes", '{"choice": ["yes"]}', '{"choice": {}}'):
        assert chat.chosen(text, options, "json_schema") is None


def test_bodies_are_those_of_the_endpoints():
    schema = JsonSchema("steps", {"type": "object"})
    vllm = chat.body(Request([], 5, schema), "m", "vllm", stream=True)
    assert vllm["structured_outputs"] == {"json": {"type": "object"}} and vllm["temperature"] == 0
    assert vllm["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    openai = chat.body(Request([], 5, YES_NO.constraint), "m", "json_schema", stream=False)
    assert openai["response_format"]["json_schema"]["schema"]["properties"]["choice"]["enum"] == ["yes", "no"]
    plain = chat.body(Request([], 5, schema), "m", "none", stream=False)
    assert set(plain) == {"model", "messages", "max_tokens", "temperature"}


def test_a_reasoning_model_gets_its_own_fields():
    plain = chat.body(Request([], 5), "m", "none", False, "max_completion_tokens", 2000)
    assert plain == {"model": "m", "messages": [], "max_completion_tokens": 2005}


def test_the_fields_of_a_reasoning_model_are_sent(endpoint, run):
    server, asked = endpoint(), []
    reply_of = server._reply
    server._reply = lambda fields: (asked.append(fields), reply_of(fields))[1]
    run(ask(settings(server, limit_field="max_completion_tokens", reasoning_tokens=100)))
    assert len(asked) == 2 and all("temperature" not in fields and "max_tokens" not in fields for fields in asked)
    assert asked[1]["max_completion_tokens"] == 16 + 100


def test_a_models_dated_or_revised_name_is_the_model():
    reply = b'{"model": "%s", "choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}'
    for name in (b"gpt-x-2026-01-31", b"gpt-x@main"):
        assert chat.read(reply % name, "application/json", "gpt-x").text == "x"
    with pytest.raises(BadReply, match="gpt-x-mini"):
        chat.read(reply % b"gpt-x-mini", "application/json", "gpt-x")


def test_an_endpoint_that_lists_no_model_is_known_by_its_replies(endpoint, run, caplog):
    server = endpoint()
    server.listed = []
    reply, _, _ = run(ask(settings(server)))
    assert reply.text == "hello" and "lists no model" in caplog.text
    server.behaviour.faults = {"other_model": 1.0}
    reply, _, _ = run(ask(settings(server, constrain="none")))
    assert isinstance(reply, BadReply) and "another-model" in str(reply)


def test_waiting_for_a_turn_counts_for_no_limit_where_an_endpoint_is_looked_at_again_either(endpoint, run, monkeypatch):
    server, skipped = endpoint(constrains=("vllm",)), [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + skipped[0])  # of the client alone
    monkeypatch.setattr(backends, "time", clock)

    class AnHour:
        async def acquire(self):
            skipped[0] += 3600
            await asyncio.sleep(0.01)  # a limit that has not stood still ends here

    async def scenario():
        monkeypatch.setattr(asyncio.get_running_loop(), "time", clock.monotonic)
        pool = Backends("judge", settings(server, constrain="vllm", timeout_s=60, attempts=1), per_s=1)
        pool._pace = AnHour()
        try:  # as after a start without it: the first request looks whether the constraint is kept
            return await pool.complete(HELLO, clock.monotonic() + 60)
        finally:
            await pool.aclose()

    assert run(scenario(), limit_s=1e6).text == "hello"
    assert server.counters["calls"] == 2 and skipped == [2 * 3600]


def test_one_of_many_looks_at_an_endpoint_again(endpoint, run):
    server = endpoint(constrains=("vllm",))

    async def scenario():
        pool = Backends("judge", settings(server, constrain="vllm"))
        try:
            await asyncio.gather(*(pool.complete(HELLO, time.monotonic() + 60) for _ in range(5)))
        finally:
            await pool.aclose()

    run(scenario())
    assert server.counters["calls"] == 1 + 5


DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    "body",
    [
        DEEP,
        b'{"choices": ' + DEEP,
        b'{"choices": "x"}',
        b'{"choices": ["x"]}',
        b'{"choices": [{"message": "x", "finish_reason": "stop"}]}',
        b'{"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": [1]}',
        b'{"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": "many"}}',
        b'{"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": Infinity}}',
    ],
)
def test_a_reply_of_another_shape_is_a_bad_reply(body):
    with pytest.raises(BadReply):
        chat.read(body, "application/json", "m")


@pytest.mark.parametrize(
    "data",
    [
        DEEP.decode(),
        '{"choices": 7}',
        '{"choices": ["x"]}',
        '{"choices": [{"delta": "x"}]}',
        '{"choices": [{"delta": {"content": 7}}]}',
        '{"usage": "none"}',
    ],
)
def test_an_event_of_another_shape_is_a_bad_reply(data):
    with pytest.raises(BadReply):
        chat.StreamReader("m").feed(data)


@pytest.mark.parametrize("body", [DEEP, b"[]", b'{"data": null}'])
def test_a_list_of_models_of_another_shape_is_said(run, body):
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, content=body))

    async def scenario():
        pool = Backends("judge", settings("http://h:1/v1"), transport)
        try:
            await pool.start()
        finally:
            await pool.aclose()

    with pytest.raises(BackendUnavailable, match="/models is no list of models"):
        run(scenario())


def test_a_choice_in_json_that_is_no_choice():
    assert chat.chosen(DEEP.decode(), ("yes", "no"), "json_schema") is None
