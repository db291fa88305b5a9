"""Verdicts: exactly yes or no, by content, once; answers by mathematics first. The endpoint is a stand-in."""

import asyncio
import time

import pytest

from rlkd_nemo.config.schema import Backend
from rlkd_nemo.errors import BadReply, InputError
from rlkd_nemo.gsrm.alignment import Question
from rlkd_nemo.gsrm.prompting import Prompts
from rlkd_nemo.gsrm.service.backends import Backends
from rlkd_nemo.gsrm.service.judge import LLMJudge, read_verdicts
from rlkd_nemo.gsrm.service.mathematics import MathVerify, formula
from rlkd_nemo.gsrm.service.verdicts import VerdictCache

PROMPTS = Prompts()
META = Question("meta", "add first", "Add first.")


async def judging(server, work, per_response=False, cache=None, limit_s=0.0, **more):
    backends = Backends("judge", Backend(urls=[server.url], model="stand-in", **more))
    await backends.start()
    mathematics = MathVerify(limit_s)
    judge = LLMJudge(backends, PROMPTS, cache or VerdictCache(100), mathematics, per_response)
    server.counters.clear()
    try:
        return await work(judge)
    finally:
        await backends.aclose()
        await mathematics.aclose()


def soon():
    return time.monotonic() + 60


@pytest.mark.parametrize("constrains", [("vllm",), ("json_schema",), ()])
def test_equal_questions_are_asked_once(endpoint, run, constrains):
    server = endpoint(constrains=constrains, first_token_s=0.05)

    async def work(judge):
        first = await asyncio.gather(*(judge.same(META, "p", soon()) for _ in range(20)))
        again = await judge.same(META, "p", soon())
        other = await judge.same(Question("meta", "add first", "subtract"), "p", soon())
        elsewhere = await judge.same(META, "another problem", soon())
        return {*first, again, elsewhere}, other

    assert run(judging(server, work)) == ({True}, False) and server.counters["calls"] == 3


@pytest.mark.parametrize("said", ["know", "yes, but no", "Yes, both denote it", "", "maybe", '{"choice": "yes"}'])
def test_a_reply_that_is_not_a_word_is_no_verdict(endpoint, run, said):
    server = endpoint(rule=lambda messages, form: said, constrains=())

    async def work(judge):
        for _ in range(2):  # nothing is kept of it
            with pytest.raises(BadReply, match="wanted yes or no"):
                await judge.same(META, "p", soon())

    run(judging(server, work))
    assert server.counters["calls"] == 2


def test_a_caller_that_gives_up_does_not_take_the_others_along(endpoint, run):
    server = endpoint(first_token_s=2.0)  # so long that the other two come meanwhile

    async def work(judge):
        first = asyncio.ensure_future(judge.same(META, "p", soon()))
        await asyncio.sleep(0.05)
        second = asyncio.ensure_future(judge.same(META, "p", soon()))
        await asyncio.sleep(0.05)
        first.cancel()
        return await second

    assert run(judging(server, work)) is True and server.counters["calls"] == 1


PAIRS = [
    (1, Question("meta", "a", "a")), (1, Question("question", "q", "Q")), (1, Question("answer", "in box 2", "box 3")),
    (2, Question("meta", "b", "c")),
]  # fmt: skip


@pytest.mark.parametrize("constrains", [("vllm",), ("json_schema",), ()])
def test_per_response_is_one_call(endpoint, run, constrains):
    server = endpoint(constrains=constrains)

    async def work(judge):
        first = await judge.all(PAIRS, "p", soon())
        calls = server.counters["calls"]
        more = [*PAIRS, (3, Question("meta", "d", "d"))]
        assert await judge.all(more, "p", soon()) == {**first, (3, "meta"): True}
        assert await judge.all(more, "p", soon()) == {**first, (3, "meta"): True}
        return first, calls, server.counters["calls"]

    found, calls, later = run(judging(server, work, per_response=True))
    assert found == {(1, "meta"): True, (1, "question"): True, (1, "answer"): False, (2, "meta"): False}
    assert (calls, later) == (1, 2)  # only what is not known yet is asked


@pytest.mark.parametrize(
    "reply",
    ['{"1": {"meta": "yes"}}', '{"1": {"meta": "yes", "answer": "no"}, "2": {"meta": "no"}}', "yes", "[]", "{}",
     '{"1": {"meta": "yes", "question": "no"}, "2": {"meta": "no"}}', '{"1": {"meta": "maybe"}, "2": {"meta": "no"}}',
     '{"1": {"meta": "yes"}, "2": {"meta": true}}', '{"1": {"meta": "yes", "meta": "no"}, "2": {"meta": "no"}}',
     '{"1": {"meta": ["yes"]}, "2": {"meta": "no"}}', '{"1": "yes", "2": {"meta": "no"}}', '{"1": {"meta": "yes"}, "2":'],
)  # fmt: skip
def test_missing_extra_or_unclear_verdicts_fail(reply):
    asked = {1: {"meta": None}, 2: {"meta": None}}
    with pytest.raises(BadReply, match="verdict"):
        read_verdicts(reply, asked)
    assert read_verdicts('{"2": {"meta": "no"}, "1": {"meta": "yes"}}', asked) == {
        (1, "meta"): True,
        (2, "meta"): False,
    }


def test_mathematics_first(endpoint, run):
    server = endpoint(rule=lambda messages, form: "no")

    async def work(judge):
        async def same(teacher, student):
            return await judge.same(Question("answer", teacher, student), "p", soon())

        decided = [
            await same("1/2", "0.50"), await same("40", "41"), await same("2x + 4", "2(x+2)"),
            await same(r"$\frac{\sqrt{8}}{2}$", r"\sqrt{2}"), await same("a + b = 13", "a+b=13"),
        ]  # fmt: skip
        calls = server.counters["calls"]
        # Not equal as formulas, or prose: the model decides.
        asked = [await same("x", "y"), await same("5", "not 5"), await same("no, 3 ways", "3")]
        # Nor does a gold answer that is no formula after all: not an error, and not a verdict.
        gold = (r"\frac{1}{", "1/0", r"\sqrt{", "x^", "{{{", "\\")
        asked += [await same(broken, "7") for broken in gold]
        return decided, calls, asked, server.counters["calls"]

    found = run(judging(server, work, limit_s=5.0), limit_s=90)
    assert found == ([True, False, True, True, True], 0, [False] * 9, 9)
    assert formula(r"\frac{1}{2} ab + \sin x") and not formula("the sum") and not formula("no 5") and not formula("")


def test_mathematics_that_takes_too_long_is_ended(run):
    async def work():
        mathematics = MathVerify(5.0)
        assert await mathematics.equal("x+1", "1+x") is True  # started
        process, mathematics._limit_s = mathematics._process, 1e-6  # less than any pair takes
        found = await mathematics.equal("x^2+1", "1+x^2")
        ended = await asyncio.wait_for(process.wait(), 10)
        mathematics._limit_s = 20.0
        again = await mathematics.equal("x+2", "2+x")
        await mathematics.aclose()
        return found, ended, again

    assert run(work(), limit_s=90) == (None, -9, True)


def test_verdicts_are_shared_between_processes(tmp_path, caplog):
    path = tmp_path / "v" / "verdicts.sqlite"
    one, two = VerdictCache(2, path), VerdictCache(2, path)
    one.put("k", True)
    assert two.get("k") is True and two.get("other") is None
    for name in ("a", "b", "c"):
        one.put(name, False)
    assert list(one._seen) == ["b", "c"] and one.get("k") is True  # from the file
    memory = VerdictCache(2)
    for name in ("a", "b", "c"):
        memory.put(name, False)
    assert memory.get("a") is None and memory.get("c") is False
    (tmp_path / "text").write_text("not a database, but long enough to be told from one" * 50)
    with pytest.raises(InputError, match="gsrm.llm.verdicts"):
        VerdictCache(2, tmp_path / "text")
