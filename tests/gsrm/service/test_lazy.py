"""Lazy scoring: the eager reward for a part of the tokens. No network: a stream is a list of pieces."""

import asyncio
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlkd_nemo.errors import BadReply
from rlkd_nemo.gsrm import alignment, schema, stream
from rlkd_nemo.gsrm.service import lazy
from rlkd_nemo.gsrm.service.decomposer import Decomposition
from rlkd_nemo.types import Step

# Few texts, so that verdicts repeat; an empty meta agrees with nothing.
TEXT = st.sampled_from(["a", "b", "cc", 'd "e"'])
STEP = st.builds(Step, TEXT | st.just(""), st.none() | TEXT | st.just(""), st.none() | TEXT)
STEPS = st.lists(STEP, max_size=5)


class Judge:
    """Verdicts from a script, whatever the texts; each after some turns of the event loop."""

    name = "scripted"

    def __init__(self, verdicts, delays=()):
        self._verdicts, self._delays, self.asked = verdicts, list(delays), []

    def same(self, kind, teacher, student, problem):
        return self._verdicts[zlib.crc32(repr((kind, teacher, student)).encode()) % len(self._verdicts)]

    async def ask(self, question):
        self.asked.append(question)
        for _ in range(self._delays[len(self.asked) % len(self._delays)] if self._delays else 0):
            await asyncio.sleep(0)
        return self.same(question.kind, question.teacher, question.student, "")


def writing(text, form, sizes, given_out, error=None):
    """A stream of `text` in pieces of these sizes, over and over; then `error`."""

    async def run(hand):
        reader, at, turn = stream.reader(form), 0, 0
        while at < len(text):
            piece = text[at : at + sizes[turn % len(sizes)]]
            given_out.append(piece)
            hand(reader.feed(piece))
            at, turn = at + len(piece), turn + 1
            await asyncio.sleep(0)
        if error is not None:
            raise error
        hand(reader.close())
        return Decomposition(tuple(schema.read(text, form)), text)

    return run


# Drawing steps is slow on a busy machine; that is no fault of the code.
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    STEPS, st.lists(STEP, min_size=1, max_size=5), st.sampled_from(["json", "tags"]),
    st.lists(st.integers(1, 30), min_size=1, max_size=4),
    st.lists(st.booleans() | st.just(True), min_size=1, max_size=7), st.lists(st.integers(0, 9), max_size=4),
    st.sampled_from(["teacher", "none"]),
)  # fmt: skip
def test_the_reward_is_the_eager_one(student, teacher, form, sizes, verdicts, delays, norm):
    text = schema.write(student, form)
    student = schema.read(text, form)  # tags cannot say every step
    judge, given_out = Judge(verdicts, delays), []
    eager = alignment.structure_reward(student, teacher, judge, norm)
    found = asyncio.run(lazy.structure_reward(writing(text, form, sizes, given_out), teacher, judge.ask, norm))
    assert found.result.reward == eager.reward and found.result.matched == eager.matched
    assert found.result.verdicts == eager.verdicts and found.result.parts_at == eager.parts_at
    assert list(found.student) == student[: len(found.student)] or found.decomposition is None
    questions = 0

    def counted(kind, *texts):
        nonlocal questions
        questions += 1
        return Judge.same(judge, kind, *texts)

    judge.same = counted
    alignment.structure_reward(student, teacher, judge, norm)
    asked, judge.asked = judge.asked, []
    assert len(asked) == questions  # never a question more than the eager walk asks


@pytest.mark.parametrize(("form", "after"), [("json", 1), ("tags", len("\n[Sub-problem 2]"))])
def test_generation_stops_at_the_end_of_the_first_mismatching_meta_line(form, after):
    teacher = [Step(f"m{i}", f"q{i}", f"a{i}") for i in range(4)]
    student = [teacher[0], Step("elsewhere", "q1", "a1"), *teacher[2:]]
    text, given_out = schema.write(student, form), []

    class Equal(Judge):
        def same(self, kind, a, b, problem):
            return a == b

    judge = Equal([])
    found = asyncio.run(lazy.structure_reward(writing(text, form, [1], given_out), teacher, judge.ask, "teacher"))
    assert found.result.reward == 0.25 and found.decomposition is None and found.student[1].meta == "elsewhere"
    needed = text.index("elsewhere") + len("elsewhere") + after
    assert needed <= len(given_out) <= needed + 6  # turns of the event loop until the cancellation arrives


def test_generation_stops_after_the_references_last_step():
    teacher = [Step("m0", "q0", "a0")]
    text, given_out = schema.write(teacher * 20, "json"), []
    found = asyncio.run(
        lazy.structure_reward(writing(text, "json", [5], given_out), teacher, Judge([True]).ask, "teacher")
    )
    assert found.result.reward == 1 and found.decomposition is None and len(given_out) < 30  # of 176


def test_failures_are_raised_only_where_they_matter():
    teacher = [Step("m0", "q0", "a0"), Step("m1", "q1", "a1")]
    half = schema.write(teacher, "json")[:60]

    def score(text, judge, error):
        streamed = writing(text, "json", [3], [], error)
        return asyncio.run(lazy.structure_reward(streamed, teacher, judge.ask, "teacher"))

    with pytest.raises(ConnectionError, match="gone"):
        score(half, Judge([True]), ConnectionError("gone"))
    # The match is over before the stream breaks.
    assert score(half, Judge([False]), ConnectionError("gone")).result.reward == 0

    class Broken(Judge):
        async def ask(self, question):
            if question.kind == "answer":
                raise BadReply("maybe")
            return True

    with pytest.raises(BadReply, match="maybe"):
        score(schema.write(teacher, "json"), Broken([True]), None)
    with pytest.raises(BadReply, match="breaks off"):
        score(half, Judge([True]), None)


def test_whoever_is_cancelled_twice_leaves_no_generation_behind():
    teacher = [Step("m0", "q0", None), Step("m1", None, None)]
    begun, ended = [], []

    async def writes(hand):
        try:
            hand(reader.feed(schema.write(teacher[:1], "json")[:-2]))
            await asyncio.sleep(3600)
        finally:
            ended.append("stream")

    async def ask(question):
        if question.kind == "meta":
            return True
        begun.append(question)
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.05)  # in no hurry: whoever waits for it may be cancelled meanwhile
            ended.append("ask")

    async def work():
        scored = asyncio.ensure_future(lazy.structure_reward(writes, teacher, ask, "teacher"))
        while not begun:
            await asyncio.sleep(0)
        for _ in range(2):  # as a time limit does that is over
            scored.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await scored
        await asyncio.sleep(0)
        return list(ended)

    reader = stream.reader("json")
    assert "stream" in asyncio.run(work())
