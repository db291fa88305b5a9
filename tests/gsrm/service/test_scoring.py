"""Items in, rewards or typed failures out, over real HTTP. The endpoint is a stand-in: rules in place of a model."""

import asyncio
import json

import pytest

from benchmarks.gsrm_endpoint import stand_in
from rlkd_nemo.config.schema import LLM, Backend, Gsrm
from rlkd_nemo.errors import BackendUnavailable, ConfigError
from rlkd_nemo.gsrm.service import backends as backends_module
from rlkd_nemo.gsrm.service.core import Item
from rlkd_nemo.gsrm.service.scoring import Scoring
from rlkd_nemo.types import Failure
from tests.gsrm.service.serving import until

STEPS = ["add the numbers: what is 2 + 3 = 5", "double it: what is 2 * 5 = 10", "halve it: what is 10 / 2 = 5"]
REFERENCE = "<think>" + "\n".join(STEPS) + "</think><answer>5</answer>"


def response(*lines):
    return "<think>\n" + "\n".join(lines) + "\n</think><answer>5</answer>"


# response, reward (norm teacher), matched
CASES = {
    "full": (response(*STEPS), 1.0, 3),
    "wrong answer": (response(STEPS[0], STEPS[1].replace("10", "11"), STEPS[2]), 2.5 / 3, 3),
    "other question and answer": (response(STEPS[0], "double it: why = no"), 1.25 / 3, 2),
    "parts after one": (response(STEPS[0], "square it: what is 5 * 5 = 25", STEPS[2]), 1 / 3, 1),
    "parts at once": (response("guess: what is it = 5", *STEPS), 0.0, 0),
    "more steps": (response(*STEPS, "check: is 5 right = yes"), 1.0, 3),
    "unterminated": ("<think>" + STEPS[0], 1 / 3, 1),
    "no think": ("\n".join(STEPS), 1.0, 3),
}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(backends_module, "FIRST_WAIT_S", 0.01)


def settings(decomposer, judge, llm=None, **more):
    def backend(server):
        return Backend(urls=[server.url], model="stand-in", breaker_cool_s=0.2, timeout_s=60)

    models = LLM(**{"decomposer": backend(decomposer), "judge": backend(judge), "math_verify_s": 0, "eager_share": 0.0,
                    **(llm or {})})  # fmt: skip
    return Gsrm(**{"decomposer": "llm", "judge": "llm", "llm": models, **more})


async def scoring(config, store, work):
    core = Scoring(config, store)
    await core.start()
    try:
        return await work(core)
    finally:
        await core.aclose()


def item(text, name="i", references=(REFERENCE,), problem="What is half of twice 2 + 3?"):
    return Item(name, problem, text, tuple(references))


def score_all(config, store, items, deadline_s=60.0):
    async def work(core):
        return await asyncio.gather(*(core.score(one, deadline_s=deadline_s) for one in items))

    return scoring(config, store, work)


@pytest.mark.parametrize("constrains", [("vllm",), ()], ids=["json", "tags"])
@pytest.mark.parametrize("llm", [{}, {"lazy": "off"}, {"judging": "per_response"}], ids=["lazy", "eager", "together"])
def test_rewards(endpoint, run, tmp_path, llm, constrains):
    config = settings(endpoint(constrains=constrains), endpoint(constrains=constrains), llm)
    items = [item(text, name) for name, (text, _, _) in CASES.items()]
    for result in run(score_all(config, tmp_path, items)):
        _, reward, matched = CASES[result.id]
        assert (result.status, result.failure, result.error) == ("ok", None, None)
        assert result.reward == pytest.approx(reward) and result.matched == matched
        assert [step.meta for step in result.teacher_steps] == ["add the numbers", "double it", "halve it"]
        stopped = not llm and result.id in ("parts after one", "parts at once", "more steps")
        assert result.detail["student_complete"] or stopped
        assert json.loads(json.dumps(result.as_dict()))["steps"][0]["meta"] in (True, False)


@pytest.mark.parametrize(
    ("more", "reward"),
    [({"norm": "none"}, 1.0), ({"norm": "max"}, 1 / 4), ({"alignment": "monotone"}, 1.0), ({"reference_mode": "best"}, 1.0),
     ({"reference_mode": "tree"}, 1.0)],
    ids=lambda value: str(value),
)  # fmt: skip
def test_other_rules(endpoint, run, tmp_path, more, reward):
    server = endpoint()
    inserted = response(STEPS[0], "wait: really = yes", STEPS[1], STEPS[2])
    references = [REFERENCE, inserted] if "reference_mode" in more else [REFERENCE]
    config = settings(server, server, **more)
    (result,) = run(score_all(config, tmp_path, [item(inserted, references=references)]))
    assert result.reward == pytest.approx(reward) and result.status == "ok"
    assert (
        Scoring(config, tmp_path).not_lazy is None if more == {"norm": "none"} else Scoring(config, tmp_path).not_lazy
    )


def test_lazy_scoring_saves_tokens_and_references_are_made_once(endpoint, run, tmp_path):
    def scored(llm=None, **behaviour):
        """By an endpoint of its own: what an earlier scoring cancelled is counted late on a busy machine."""
        decomposer = endpoint(constrains=("vllm",), **behaviour)
        results = run(score_all(settings(decomposer, judge, llm), tmp_path, items))
        return [result.reward for result in results], decomposer.counters

    judge = endpoint(constrains=("vllm",))
    apart = response("guess: what is it = 5", *(STEPS * 5))
    items = [item(apart, str(i)) for i in range(4)]
    _, first = scored()
    assert first["calls"] == 1 + 1 + 4  # the probe, the reference once, each response
    rewards, lazy = scored(token_s=0.05)  # so slow that a busy machine cancels in time
    until(lambda: lazy["cancelled"] == 4)  # the endpoint's own thread sees it a moment later
    assert lazy["calls"] == 1 + 4
    eager_rewards, eager = scored({"lazy": "off"})
    assert rewards == eager_rewards == [0.0] * 4
    assert lazy["completion_tokens"] * 5 < eager["completion_tokens"]
    _, audited = scored({"eager_share": 1.0})
    assert audited["cancelled"] == 0  # all of them


def test_failures_are_typed(endpoint, run, tmp_path):
    decomposer, judge = endpoint(), endpoint()
    fresh = iter(range(1000))

    def one(faults, where, references=(REFERENCE,), text=None, deadline_s=60.0, **llm):
        async def work(core):
            where.behaviour.faults = faults
            try:
                problem = f"problem {next(fresh)}"  # nothing is known of it
                return await core.score(item(text or response(*STEPS), "x", references, problem), deadline_s=deadline_s)
            finally:
                where.behaviour.faults = {}

        config = settings(decomposer, judge, llm)
        # Reference and response fail side by side; an open breaker would have the last word in some orders.
        config.llm.decomposer.breaker_failures = config.llm.judge.breaker_failures = 99
        return run(scoring(config, tmp_path, work))

    for lazy in ("auto", "off"):
        found = {
            "none": one({}, judge, references=(), lazy=lazy),
            "stepless": one({}, judge, references=("<think>hm</think>",), lazy=lazy),
            "empty": one({}, judge, text="<think></think>", lazy=lazy),
            "no steps": one({}, judge, text="<think>no idea</think>", lazy=lazy),
            "decomposer down": one({"fail": 1.0}, decomposer, lazy=lazy),
            "decomposer lies": one({"html": 1.0}, decomposer, lazy=lazy),
            "judge down": one({"fail": 1.0}, judge, lazy=lazy),
            "judge lies": one({"truncated": 1.0}, judge, lazy=lazy),
            "judge hangs": one({"hang": 1.0}, judge, deadline_s=2.0, lazy=lazy),
            "cut off": one({}, judge, max_tokens=10, lazy=lazy),
        }
        assert {name: result.failure for name, result in found.items()} == {
            "none": Failure.REFERENCE_MISSING,
            "stepless": Failure.REFERENCE_MISSING,
            "empty": Failure.UNPARSEABLE_STUDENT,
            "no steps": Failure.UNPARSEABLE_STUDENT,
            "decomposer down": Failure.BACKEND_UNAVAILABLE,
            "decomposer lies": Failure.DECOMPOSER_FAILED,
            "judge down": Failure.BACKEND_UNAVAILABLE,
            "judge lies": Failure.JUDGE_FAILED,
            "judge hangs": Failure.TIMEOUT,
            "cut off": Failure.DECOMPOSER_FAILED,
        }
        for result in found.values():
            assert result.id == "x" and (result.reward is None) == result.failure.by_system and result.error


def test_a_stream_that_breaks_off_is_begun_anew(endpoint, run, tmp_path):
    decomposer = endpoint(seed=3)
    config = settings(decomposer, endpoint())

    async def work(core):
        await core.score(item(REFERENCE), deadline_s=60)
        decomposer.behaviour.faults = {"broken_stream": 0.4}
        items = [item(response(*STEPS[: 1 + i % 3], f"word {'x' * i}: q = a"), str(i)) for i in range(12)]
        return await asyncio.gather(*(core.score(one, deadline_s=60) for one in items))

    results = run(scoring(config, tmp_path, work))
    assert decomposer.counters["broken_stream"] > 0
    for i, result in enumerate(results):
        assert result.reward == pytest.approx((1 + i % 3) / 3) or result.failure is Failure.BACKEND_UNAVAILABLE
    assert sum(result.status == "ok" for result in results) >= 9


@pytest.mark.parametrize("lazy", ["on", "off"])
def test_a_model_that_does_not_keep_to_the_form_says_nothing_about_its_endpoint(endpoint, run, tmp_path, lazy):
    def rule(messages, form):
        return "Sure, here you go!" * 50 if "astray" in messages[-1]["content"] else stand_in(messages, form)

    async def work(core):
        scored = [await core.score(item(response(*STEPS, f"astray: {n} = {n}")), deadline_s=60) for n in range(6)]
        return {result.failure for result in scored}, core.unavailable()

    config = settings(endpoint(rule=rule), endpoint(), {"lazy": lazy})
    config.llm.decomposer.breaker_cool_s = 600
    assert run(scoring(config, tmp_path, work)) == ({Failure.DECOMPOSER_FAILED}, None)


def test_an_open_breaker_is_told(endpoint, run, tmp_path):
    decomposer, judge = endpoint(), endpoint()

    async def work(core):
        assert core.unavailable() is None and {s.role for s in core.backends()} == {"decomposer", "judge"}
        assert "stand-in" in core.version and "prompts-" in core.version
        judge.behaviour.faults = {"fail": 1.0}
        for number in range(3):
            await core.score(item(response(*STEPS), problem=str(number)), deadline_s=60)
        return core.unavailable()

    config = settings(decomposer, judge)
    config.llm.judge.breaker_cool_s = 600
    assert "every judge endpoint is failing" in run(scoring(config, tmp_path, work))


def test_settings_that_cannot_be_used(endpoint, run, tmp_path):
    with pytest.raises(ConfigError, match=r"lazy=on cannot be served: gsrm.norm=max"):
        Scoring(settings(endpoint(), endpoint(), {"lazy": "on"}, norm="max"), tmp_path)
    config = settings(endpoint(), endpoint())
    config.llm.judge.urls = ["http://127.0.0.1:9/v1"]
    with pytest.raises(BackendUnavailable, match="no judge can be reached"):
        run(scoring(config, tmp_path, None))


def test_models_are_optional(endpoint, run, tmp_path):
    tagged = "[Meta-reasoning 1]: add [Answer 1]: 5"

    async def work(core):
        assert core.backends() == [] and core.unavailable() is None
        return await core.score(item(tagged, references=(tagged,)), deadline_s=60)

    result = run(scoring(Gsrm(), tmp_path, work))
    assert result.reward == 1 and Scoring(Gsrm(), tmp_path).not_lazy


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<think>",
        "</think>",
        "\x00\x01\x02",
        "a" * 1_000_000,
        "\ud800 lone",
        "<think>" + "x: y = z\n" * 500,
        "\u202e",
    ],
    ids=["empty", "open", "closed", "control", "1 MB", "surrogate", "500 steps", "right to left"],
)
def test_bad_input(endpoint, run, tmp_path, text):
    server = endpoint()
    (result,) = run(score_all(settings(server, server, {"lazy": "off", "max_tokens": 20_000}), tmp_path, [item(text)]))
    assert result.status == "ok" and result.reward == 0
    if len(text) == 1_000_000:
        assert result.detail["cut_chars"] == 940_000


def test_domains_pick_the_prompt(endpoint, run, tmp_path):
    seen = []

    def rule(messages, form):
        seen.append(messages[0]["content"])
        return stand_in(messages, form)

    config = settings(endpoint(rule=rule), endpoint())
    items = [Item(str(d), "p", response(*STEPS), (REFERENCE,), d) for d in (None, "code", "puzzle", "law")]

    async def work(core):
        return [await core.score(one, deadline_s=60) for one in items]

    assert all(result.reward == 1 for result in run(scoring(config, tmp_path, work)))
    prompts = [text for text in seen if "reasoning apart" in text]
    for number, word in enumerate(["mathematical step", "programming step", "step of a puzzle", "scientific step"]):
        assert all(word in text for text in prompts[2 * number : 2 * number + 2])  # the reference's and the response's
