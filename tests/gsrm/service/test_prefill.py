"""Filling the store ahead of a run: once each, resumable, slow enough, and what was rejected is reported."""

import asyncio
import json
import time

import pytest

from rlkd_nemo.config.load import load
from rlkd_nemo.config.schema import Prefill
from rlkd_nemo.errors import BackendUnavailable, BadReply, ConfigError
from rlkd_nemo.gsrm.service import sweep
from rlkd_nemo.gsrm.service.prefill import all_references, fill, run
from rlkd_nemo.types import Problem, Step


class Kept:
    """A store whose decomposer answers by the word that the text is."""

    def __init__(self):
        self.kept, self.asked = {}, []

    def stored(self, problem, text, domain=None):
        return (problem, text) in self.kept

    async def decompose(self, problem, text, domain=None):
        if (problem, text) not in self.kept:
            self.asked.append((text, domain))
            await asyncio.sleep(0)
            if text == "down":
                raise BackendUnavailable("nobody there")
            if text == "html":
                raise BadReply("the reply is HTML")
            self.kept[problem, text] = [] if text == "stepless" else [Step(text)]
        return self.kept[problem, text]


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(sweep, "WAITS_S", ())


def references(*texts):
    return [(Problem(f"p{n}", f"problem {n}", "", (text,), "", {"domain": "code"}), 0) for n, text in enumerate(texts)]


def test_each_is_made_once_and_rejects_are_written_with_their_reason(tmp_path):
    store, out = Kept(), tmp_path / "run" / "rejected.jsonl"
    asked = references("a", "b", "stepless", "html", "down")
    found = asyncio.run(fill(store, asked, Prefill(concurrency=2), out))
    assert found == {"there_before": 0, "made": 2, "rejected": 2, "failed": 1, "left": 0}
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["problem_id"], line["reason"]) for line in lines] == [
        ("p2", "no step was found"),
        ("p3", "the reply is HTML"),
    ]
    assert store.asked[0] == ("a", "code")
    again = asyncio.run(fill(store, asked, Prefill(), out))
    assert again == {"there_before": 2, "made": 0, "rejected": 2, "failed": 1, "left": 0}
    assert sorted(text for text, _ in store.asked) == ["a", "b", "down", "down", "html", "html", "stepless"]


def test_it_keeps_to_the_rate_and_does_not_slow_down_what_is_there(tmp_path, endpoint):
    server = endpoint()
    lines = [{"problem": f"p{n}", "answer": "1", "teacher_path": f"look: what is {n} = {n}"} for n in range(6)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    backend = "gsrm.llm.decomposer"
    overrides = ["task=prompts", f"task.path={tmp_path}/p.jsonl", f"exp_manager.exp_dir={tmp_path}/run"]
    overrides += ["gsrm.decomposer=llm", f"{backend}.urls=[{server.url}]", f"{backend}.model=stand-in"]
    overrides += [f"{backend}.constrain=none"]  # nothing is tried at the start
    slow = load("rlkd_demo", [*overrides, "gsrm.prefill.per_s=4"])
    started = time.monotonic()
    run(slow)
    assert time.monotonic() - started > 1.2 and server.counters["calls"] == 6  # five waits of 0.25 s
    # What is there waits for no turn: each would be an hour.
    run(load("rlkd_demo", [*overrides, "gsrm.prefill.per_s=0.0003"]))
    assert server.counters["calls"] == 6


def test_a_signal_leaves_the_rest(tmp_path):
    store = Kept()
    stop = lambda: len(store.asked) >= 2  # noqa: E731
    found = asyncio.run(fill(store, references(*"abcdef"), Prefill(concurrency=1), tmp_path / "r", stop))
    assert (found["made"], found["left"]) == (2, 4)


def test_a_prompt_file_is_filled_whole_and_goes_on(tmp_path):
    tagged = "[Meta-reasoning 1]: look"
    lines = [{"problem": f"p{n}", "answer": "1", "teacher_path": [tagged, f"no steps {n}"]} for n in range(30)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    overrides = ["task=prompts", f"task.path={tmp_path}/p.jsonl", f"exp_manager.exp_dir={tmp_path}/run"]
    cfg = load("rlkd_demo", overrides)
    assert len(list(all_references(cfg))) == 30
    run(cfg)
    assert len(list((tmp_path / "run/references").glob("*/*.json"))) == 30
    assert (tmp_path / "run/rejected_references.jsonl").read_text() == ""
    best = load("rlkd_demo", [*overrides, "gsrm.reference_mode=best"])
    run(best)
    assert len((tmp_path / "run/rejected_references.jsonl").read_text().splitlines()) == 30


def test_a_task_without_end_wants_a_number():
    with pytest.raises(ConfigError, match="gsrm.prefill.num_problems"):
        list(all_references(load("rlkd_demo")))
    assert len(list(all_references(load("rlkd_demo", ["gsrm.prefill.num_problems=7"])))) >= 7
