"""The trainer's scorer over a service: equal to the embedded one, patient with failures, and never 0 for them."""

import concurrent.futures
import threading
import time

import pytest

from rlkd_nemo import tasks
from rlkd_nemo.config.schema import ExpressionsTask, Gsrm, GsrmService, Reward
from rlkd_nemo.gsrm.judge import NormalisedJudge
from rlkd_nemo.gsrm.service.client import GsrmClient
from rlkd_nemo.gsrm.service.core import Result
from rlkd_nemo.gsrm.service.scorer import ServiceScorer, component
from rlkd_nemo.gsrm.service.scoring import Scoring
from rlkd_nemo.report.audit import RolloutAudit, read
from rlkd_nemo.rewards.blend import EmbeddedScorer
from rlkd_nemo.types import Failure, Problem, Rollout, Score, Step
from tests.gsrm.service.serving import running

TASK = tasks.build(ExpressionsTask())
PATH = "a:1+2=3;c:3*4=2;b:3-2=1;</think><answer>1</answer>"
OTHER = "c:3*4=2;a:1+2=3;b:3-2=1;</think><answer>1</answer>"
TEXTS = [PATH, OTHER, "a:1+2=3;c:3*4=1;b:3-1=2;</think><answer>2</answer>", "", "nonsense", "a:1+2=3;c:3*4=2;"]


def rollouts(texts=TEXTS, paths=(PATH, OTHER)):
    problem = Problem("p" * 80, "(1a+2)b-(3c*4)=<think>", "1", tuple(paths))
    return [Rollout(problem, 0, n, [], [], [], text, n == 5, 0, 1.0) for n, text in enumerate(texts)]


@pytest.mark.parametrize("settings", [{}, {"reference_mode": "best", "norm": "max"}, {"alignment": "monotone"}])
def test_the_service_gives_the_scores_of_the_embedded_scorer(tmp_path, settings):
    gsrm = Gsrm(**settings)
    embedded = EmbeddedScorer(TASK, Reward(), gsrm, tmp_path / "embedded")
    core = Scoring(gsrm, tmp_path / "served", TASK.notation())
    with running(core, tmp_path / "ids") as server:
        client = GsrmClient(GsrmService(urls=[server.url], items_per_request=2))
        scorer = ServiceScorer(TASK, Reward(), gsrm, client, max_failed_fraction=0.0)
        asked = rollouts() + rollouts(["x"], paths=[""])
        scorer.begin(asked)
        served, local = scorer.score(asked), embedded.score(asked)
        no_path = scorer.score(rollouts(paths=()))
        client.close()
    for one, other in zip(served, local):
        assert one.reward == other.reward
        for name, part in other.components.items():
            assert (one.components[name].value, one.components[name].failure) == (part.value, part.failure), name
        mine, theirs = one.components["structure"].detail, other.components["structure"].detail
        for key in ("student_steps", "teacher_steps", "matched", "weights", "parts_at", "reference"):
            assert mine.get(key) == theirs.get(key) or theirs.get(key) is None, key
    assert [score.components["structure"].failure for score in no_path] == [Failure.REFERENCE_MISSING] * 6


class Flaky:
    """A client whose first `bad` calls fail for every item."""

    def __init__(self, bad, failure=Failure.BACKEND_UNAVAILABLE, final=False):
        self.bad, self.failure, self.final, self.calls = bad, failure, final, []

    def submit(self, items):
        self.calls.append([item.id for item in items])
        down = len(self.calls) <= self.bad
        detail = {"final": True} if self.final else {}
        future = concurrent.futures.Future()
        future.set_result(
            [
                Result(item.id, "failed", None, failure=self.failure, error="it is down", detail=detail)
                if down
                else Result(item.id, "ok", 0.5)
                for item in items
            ]
        )
        return future


def flaky(client, pause_s, **more):
    gsrm = Gsrm(service=GsrmService(pause_s=pause_s))
    return ServiceScorer(TASK, Reward(), gsrm, client, max_failed_fraction=0.05, **more)


def test_training_pauses_until_the_service_is_back(caplog):
    client = Flaky(bad=1)
    scorer = flaky(client, pause_s=30)
    scores = scorer.score(rollouts())
    assert [score.components["structure"].value for score in scores] == [0.5] * 6
    assert client.calls == [client.calls[0]] * 2  # the same ids again
    told = [record.message for record in caplog.records]
    assert "training is paused" in told[0] and "6 of 6" in told[0] and "it is down" in told[0]
    assert scorer.paused_s >= 1.0 and "the pause is over" in told[-1]


def test_after_the_pause_the_rollouts_have_no_reward_and_not_0(caplog):
    started = time.monotonic()
    scores = flaky(Flaky(bad=99), pause_s=0.5).score(rollouts())
    assert 0.4 < time.monotonic() - started < 30
    for score in scores:
        part = score.components["structure"]
        assert (score.reward, part.value, part.failure) == (None, None, Failure.BACKEND_UNAVAILABLE)
        assert part.detail["error"] == "it is down" and score.components["outcome"].value is not None
    assert "no score for 6 of 6" in caplog.text


@pytest.mark.parametrize("client", [Flaky(9, Failure.REFERENCE_MISSING), Flaky(9, final=True)])
def test_what_would_fail_again_is_not_waited_for(client, caplog):
    scorer = flaky(client, pause_s=30)
    assert {score.reward for score in scorer.score(rollouts())} == {None}
    assert "paused" not in caplog.text and len(client.calls) == 1


def test_a_signal_ends_the_pause():
    stopped = threading.Event()
    threading.Timer(0.3, stopped.set).start()
    started = time.monotonic()
    flaky(Flaky(bad=99), pause_s=600, stop_requested=stopped.is_set).score(rollouts())
    assert time.monotonic() - started < 60


def test_one_failure_within_the_budget_is_left_alone():
    class OneFails(Flaky):
        def submit(self, items):
            future = super().submit(items)
            future.result()[0] = Result(items[0].id, "failed", None, failure=Failure.JUDGE_FAILED, error="no verdict")
            return future

    client = OneFails(bad=0)
    scores = flaky(client, pause_s=30).score(rollouts([f"text {n}" for n in range(20)]))
    assert [score.reward is None for score in scores] == [True] + [False] * 19 and len(client.calls) == 1


class YesToAnything(NormalisedJudge):
    """A judge gone wrong."""

    def same(self, kind, teacher, student, problem):
        return True


@pytest.mark.parametrize(("broken", "same", "other"), [(False, 1.0, 0.0), (True, 1.0, 1.0)])
def test_probes_tell_a_sound_judge_from_one_that_says_yes(tmp_path, caplog, broken, same, other):
    core = Scoring(Gsrm(), tmp_path / "served")
    if broken:
        core._rule = YesToAnything()
    texts = [f"[Meta-reasoning 1]: go to {n} [Meta-reasoning 2]: then {n}" for n in range(4)]
    asked = [
        Rollout(Problem(f"p{n}", f"problem {n}", "1", (text,)), n, 0, [], [], [], text, False, 0, 1.0)
        for n, text in enumerate(texts)
    ]
    with running(core, tmp_path / "ids") as server:
        client = GsrmClient(GsrmService(urls=[server.url]))
        scorer = ServiceScorer(TASK, Reward(), Gsrm(), client, max_failed_fraction=0.0)
        scores = scorer.score(asked)
        assert scorer.probe(9, asked, scores) == {}
        found = scorer.probe(10, asked, scores)
        client.close()
    assert (found["audit/canary_same"], found["audit/canary_other"]) == (same, other)
    assert found["audit/order_swap_disagreement"] == 0.0 and found["audit/probes_failed"] == 0.0
    assert ("the judge says yes to anything" in caplog.text) == broken


def test_raw_replies_and_verdicts_reach_the_audit_file(tmp_path):
    verdicts = ({"student": 0, "teacher": 0, "meta": True, "question": None, "answer": False, "weight": 0.5},)
    result = Result("a", "ok", 0.5, 1, (Step("m"),), (Step("m"),), verdicts, detail={"reply": "raw", "parts_at": None})
    failed = Result("b", "failed", None, failure=Failure.JUDGE_FAILED, error="HTML", detail={"stage": "judge"})
    scores = [Score({"structure": component(each)}, None) for each in (result, failed)]
    (one, other) = read(RolloutAudit(tmp_path).write(1, rollouts()[:2], scores))
    detail = one["components"]["structure"]["detail"]
    assert detail["reply"] == "raw" and detail["verdicts"] == [*verdicts] and detail["weights"] == [0.5]
    assert one["student_steps"] == [{"meta": "m", "question": None, "answer": None}]
    assert other["components"]["structure"]["failure"] == "judge_failed"
    assert other["components"]["structure"]["detail"] == {"stage": "judge", "error": "HTML"}
