"""Labelling a prompt file: rows that parse, rejects with reasons, nothing lost and nothing paid twice. Stand-in endpoint."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gsrm_endpoint import stand_in
from rlkd_nemo.config.load import load
from rlkd_nemo.errors import ConfigError, InputError, Preempted, ServiceError
from rlkd_nemo.gsrm import dataset
from rlkd_nemo.gsrm.service import label, sweep
from rlkd_nemo.gsrm.service.label import run
from tests.gsrm.service.serving import until

ROOT = Path(__file__).parents[3]
STEP = "add the numbers: what is 2 + {n} = 5"


def moody(messages, form):
    """As the stand-in, but some problems make it reply badly."""
    request = messages[-1]["content"]
    for mark, reply in {"(chatty)": "Sure, here you go!", "(stepless)": '{"steps": []}'}.items():
        if mark in request:
            return reply
    if "(empty meta)" in request:
        return json.dumps({"steps": [{"meta": " ", "question": None, "answer": None}]})
    return stand_in(messages, form)


@pytest.fixture
def prompts(tmp_path):
    def write(*problems, name="problems.jsonl"):
        lines = [{"problem": p, "answer": "5", **more} for p, more in problems]
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return f"task.path={tmp_path / name}"

    return write


def overrides(tmp_path, server, *more):
    backend = "gsrm.llm.decomposer"
    return [
        "task=prompts",
        f"exp_manager.exp_dir={tmp_path / 'out'}",
        f"{backend}.urls=[{server.url}]",
        f"{backend}.model=stand-in",
        f"{backend}.api_key_env=null",
        f"{backend}.attempts=1",
        *more,
    ]


def rows_of(tmp_path):
    return {row.problem: row for row in dataset.read(tmp_path / "out/gsrm_data.jsonl", "k")}


def plain(n, **more):
    return f"problem {n}", {"teacher_path": f"<think>{STEP.format(n=n)}</think>5", **more}


def test_rows_parse_and_rejects_have_their_reason(tmp_path, prompts, endpoint):
    server = endpoint(moody)
    path = prompts(
        plain(1, domain="code"),
        plain(2, domain="poetry"),
        ("problem 3", {"teacher_paths": [STEP.format(n=1), STEP.format(n=2)]}),
        ("(chatty)", {"teacher_path": "a"}),
        ("(stepless)", {"teacher_path": "a"}),
        ("(empty meta)", {"teacher_path": "a"}),
        ("untold", {}),
    )
    run(load("gsrm_data", overrides(tmp_path, server, path)))
    rows = rows_of(tmp_path)
    assert {p: row.domain for p, row in rows.items()} == {
        "problem 1": "code",
        "problem 2": "science",  # as in the service
        "problem 3": "math",
    }
    assert rows["problem 1"].steps[0].question == "what is 2 + 1" and "stand-in" in rows["problem 1"].source
    rejects = [json.loads(line) for line in (tmp_path / "out" / label.REJECTS).read_text().splitlines()]
    reasons = {line["problem"]: line["reason"] for line in rejects}
    assert "is no JSON" in reasons["(chatty)"] and reasons["(stepless)"] == "no step was found"
    assert "'steps[1].meta' is empty" in reasons["(empty meta)"]
    summary = json.loads((tmp_path / "out" / label.SUMMARY).read_text())
    assert (summary["made"], summary["rejected"], summary["rows"], summary["mean_steps"]) == (4, 3, 4, 1.0)
    assert summary["rows_by_domain"] == {"code": 1, "science": 1, "math": 2}
    assert summary["requests"]["calls"] == 7 + 1  # and the one that tries the constraint at the start
    # The same command asks for the rejects alone.
    before = server.counters["calls"]
    run(load("gsrm_data", overrides(tmp_path, server, path)))
    assert server.counters["calls"] - before == 3 + 1 and len(rows_of(tmp_path)) == 3


def test_a_stop_keeps_what_is_done_and_the_rest_follows(tmp_path, prompts, endpoint, monkeypatch):
    server = endpoint()
    path = prompts(*(plain(n) for n in range(12)))
    cfg = load("gsrm_data", overrides(tmp_path, server, path, "gsrm.label.concurrency=1"))
    with monkeypatch.context() as patch:
        patch.setattr(label.Labeller.label, "__defaults__", (lambda: server.counters["calls"] >= 6,))
        with pytest.raises(Preempted, match="the same command goes on"):
            run(cfg)
    out = tmp_path / "out/gsrm_data.jsonl"
    done = len(out.read_text().splitlines())
    assert done == 5  # the first call tried the constraint
    # As kill -9 in the middle of a write would leave it.
    out.write_bytes(out.read_bytes()[:-20])
    run(cfg)
    assert len(rows_of(tmp_path)) == 12 and server.counters["calls"] == 6 + 1 + 12 - 4


def test_ctrl_c_ends_the_command_with_its_rows(tmp_path, prompts, endpoint):
    server = endpoint(first_token_s=0.3)
    path = prompts(*(plain(n) for n in range(400)))
    command = [sys.executable, "examples/label_gsrm_data.py"]
    process = subprocess.Popen(
        [*command, *overrides(tmp_path, server, path, "gsrm.label.concurrency=4")],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    out = tmp_path / "out/gsrm_data.jsonl"
    until(lambda: process.poll() is not None or (out.exists() and out.read_bytes().count(b"\n") >= 3), seconds=240)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=240)[1]
    assert process.returncode == 3, told
    assert "left" in told and "the same command goes on" in told
    assert 3 <= len(rows_of(tmp_path)) < 400


def test_labels_of_two_models_do_not_mix(tmp_path, prompts, endpoint):
    path = prompts(plain(1))
    run(load("gsrm_data", overrides(tmp_path, endpoint(), path)))
    other = overrides(tmp_path, endpoint(model="other"), path, "gsrm.llm.decomposer.model=other")
    with pytest.raises(InputError, match=r"rows by .*stand-in.*add some by .*other.*wanted another gsrm.label.out"):
        run(load("gsrm_data", other))
    assert len(rows_of(tmp_path)) == 1


def test_an_endpoint_that_comes_back_is_waited_for(tmp_path, prompts, endpoint, monkeypatch):
    monkeypatch.setattr(sweep, "WAITS_S", (0.05,) * 100)
    server = endpoint()
    backend = "gsrm.llm.decomposer"
    more = [f"{backend}.breaker_failures=1", f"{backend}.breaker_cool_s=0.1", f"{backend}.constrain=none"]
    path = prompts(*(plain(n) for n in range(6)))
    reply_of, down = server._fault, iter(["fail"] * 4)
    server._fault = lambda: next(down, None) or reply_of()
    run(load("gsrm_data", overrides(tmp_path, server, path, "gsrm.label.concurrency=2", *more)))
    summary = json.loads((tmp_path / "out" / label.SUMMARY).read_text())
    assert (summary["made"], summary["failed"]) == (6, 0) and server.counters["calls"] == 6 + 4


def test_the_rate_counts_every_call(tmp_path, prompts, endpoint):
    server = endpoint()
    times, reply_of, down = [], server._fault, iter([None, "fail", "fail", "fail"])

    def fault():
        times.append(time.monotonic())
        return next(down, None) or reply_of()

    server._fault = fault
    more = ["gsrm.label.per_s=4", "gsrm.llm.decomposer.attempts=4", "gsrm.llm.decomposer.timeout_s=20"]
    cfg = load("gsrm_data", overrides(tmp_path, server, prompts(*(plain(n) for n in range(3))), *more))
    started = time.monotonic()
    run(cfg)
    # The one that tries the constraint, three texts and three tries after a failure, which alone would come at once.
    assert len(times) == 1 + 3 + 3
    # From before the first one was let out, not from when it arrived: a busy machine may have kept it on its way.
    assert times[-1] - started > 5.9 / 4, [late - started for late in times]


def test_failures_are_named_and_many_in_a_row_end_it(tmp_path, prompts, endpoint, monkeypatch):
    monkeypatch.setattr(sweep, "WAITS_S", ())
    server = endpoint()
    cfg = load(
        "gsrm_data",
        overrides(tmp_path, server, prompts(*(plain(n) for n in range(50))), "gsrm.label.concurrency=2"),
    )
    run(load("gsrm_data", overrides(tmp_path, server, prompts(plain(0), name="one.jsonl"))))
    server.behaviour.faults = {"fail": 1.0}
    cfg.gsrm.llm.decomposer.constrain = "none"  # nothing is tried at the start
    (tmp_path / "out/gsrm_data.jsonl").unlink()
    with pytest.raises(ServiceError, match="50 of 50 texts have no label"):
        run(cfg)
    summary = json.loads((tmp_path / "out" / label.SUMMARY).read_text())
    failures = summary["failures"]
    assert 6 <= failures["backend_unavailable"] <= 7  # one more may have been in flight
    assert sum(failures.values()) == 50 and set(failures) == {"backend_unavailable", "not_asked"}
    assert summary["rows"] == 0


def test_settings_that_cannot_label_are_refused(tmp_path, prompts, endpoint):
    server = endpoint(moody)
    with pytest.raises(ConfigError, match="gsrm.decomposer=text asks no model"):
        run(load("gsrm_data", ["task=prompts", "gsrm=embedded", prompts(plain(1))]))
    with pytest.raises(InputError, match="no teacher path"):
        run(load("gsrm_data", overrides(tmp_path, server, prompts(("p", {})))))
    with pytest.raises(ServiceError, match="no reply could be read"):
        run(load("gsrm_data", overrides(tmp_path, server, prompts(("(chatty)", {"teacher_path": "a"})))))
