"""Measuring a decomposer and a judge: what is right counts, what cannot be read or had is named. Stand-in endpoint."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gsrm_endpoint import stand_in
from rlkd_nemo.config.load import load
from rlkd_nemo.errors import ConfigError, InputError, Preempted, ServiceError
from rlkd_nemo.gsrm import dataset
from rlkd_nemo.gsrm.dataset import DecompositionRow, Pair, ResponseRow, VerdictRow
from rlkd_nemo.gsrm.service import sweep as sweep_module
from rlkd_nemo.gsrm.service.evaluate import RESULT, ROWS, run
from rlkd_nemo.types import Step

ROOT = Path(__file__).parents[3]
STEPS = (Step("add the numbers", "what is 2 + 3", "5"), Step("double it", "what is 2 * 5", "10"))
TEXT = "\n".join(f"{step.meta}: {step.question} = {step.answer}" for step in STEPS)


def taken(row_id, text=TEXT, steps=STEPS, domain="math"):
    return DecompositionRow(row_id, domain, f"problem {row_id}", text, steps)


def compared(row_id, teacher, student, same, kind="meta"):
    return VerdictRow(row_id, f"problem {row_id}", kind, teacher, student, same)


def settings(tmp_path, server, rows, *more):
    (tmp_path / "rows.jsonl").write_text("".join(dataset.line(row) for row in rows))
    llm = [f"gsrm.llm.{role}.{field}" for role in ("decomposer", "judge") for field in ("urls", "model", "api_key_env")]
    values = [f"[{server.url}]", "stand-in", "null"] * 2
    return [
        f"gsrm.evaluation.data={tmp_path}/rows.jsonl",
        f"exp_manager.exp_dir={tmp_path}/out",
        *(f"{key}={value}" for key, value in zip(llm, values)),
        "gsrm.llm.decomposer.attempts=1",
        "gsrm.llm.judge.attempts=1",
        *more,
    ]


def figures_of(tmp_path):
    return json.loads((tmp_path / "out" / RESULT).read_text())


def moody(messages, form):
    if "problem chatty" in messages[-1]["content"]:
        return "Sure!"
    return stand_in(messages, form)


def test_what_is_right_counts_and_what_cannot_be_read_is_named(tmp_path, endpoint):
    server = endpoint(moody)
    rows = [
        taken("good"),
        taken("half", TEXT.splitlines()[0], domain="code"),  # one of the two labelled steps is there to be found
        taken("chatty"),
        compared("v1", "add", "ADD", True),
        compared("v2", "add", "double", True),  # the stand-in says no
        compared("v3", "1/2", "0.5", True, "answer"),
        compared("v4", "add", "double", False, "question"),
    ]
    shown = run(load("gsrm_data", settings(tmp_path, server, rows)))
    found = figures_of(tmp_path)
    whole = found["decompositions"]["all"]
    assert (whole["rows"], whole["parse_rate"], whole["compared"]) == (3, 2 / 3, 2)
    assert whole["steps"] == {"precision": 3 / 3, "recall": 3 / 4, "f1": 6 / 7}
    assert whole["failures"] == {"bad_reply": 1} and found["decompositions"]["code"]["steps"]["recall"] == 1 / 2
    assert found["verdicts"]["all"]["agreement"] == 3 / 4 and found["verdicts"]["meta"]["false_no"] == 1 / 2
    assert {entry["role"] for entry in found["endpoints"]} == {"decomposer", "judge"}
    lines = {line["id"]: line for line in map(json.loads, (tmp_path / "out" / ROWS).read_text().splitlines())}
    assert lines["half"]["right"] == 1 and lines["chatty"]["failure"] == "bad_reply" and lines["v2"]["said"] is False
    assert "0.667" in shown and "1 bad_reply" in shown


def test_all_verdicts_of_a_response_are_one_call_and_count_by_kind(tmp_path, endpoint):
    server = endpoint(moody)
    agreed = Pair({"meta": "add", "answer": "in 2"}, {"meta": "ADD", "answer": "in 3"}, {"meta": True, "answer": True})
    rows = [
        ResponseRow("r1", "p", (agreed, Pair({"meta": "halve"}, {"meta": "double"}, {"meta": False}))),
        ResponseRow("r2", "problem chatty", (agreed,)),
        compared("v1", "add", "ADD", True),  # asked again: no verdict comes from a row before
    ]
    run(load("gsrm_data", settings(tmp_path, server, rows)))
    found = figures_of(tmp_path)["verdicts"]
    assert server.counters["calls"] == 3 + 2  # and one try of the constraint by each role
    whole = found["per_response"]
    assert (whole["rows"], whole["judged"], whole["agreement"]) == (2, 3, 2 / 3)  # the stand-in finds 2 and 3 different
    assert whole["failures"] == {"bad_reply": 1} == found["answer"]["failures"]
    assert (found["meta"]["rows"], found["meta"]["agreement"]) == (3, 1.0) and found["answer"]["false_no"] == 1.0
    assert found["all"]["rows"] == 3 and found["all"]["judged"] == 4
    lines = {line["id"]: line for line in map(json.loads, (tmp_path / "out" / ROWS).read_text().splitlines())}
    assert lines["r1"]["said"] == [{"meta": True, "answer": False}, {"meta": False}]
    assert lines["r1"]["labelled"][0]["answer"] is True


def test_rules_are_measured_by_the_same_command(tmp_path, endpoint):
    tagged = "[Meta-reasoning 1]: add the numbers [Sub-problem 1]: what is 2 + 3 [Answer 1]: 5"
    rows = [taken("r", tagged, STEPS[:1]), compared("v", "1/2", "0.50", True, "answer")]
    rows.append(ResponseRow("a", "p", (Pair({"answer": "1/2"}, {"answer": "0.50"}, {"answer": True}),)))
    run(load("gsrm_data", settings(tmp_path, endpoint(), rows, "gsrm=embedded")))
    found = figures_of(tmp_path)
    assert found["decompositions"]["all"]["steps"]["f1"] == found["verdicts"]["all"]["agreement"] == 1.0
    assert found["endpoints"] == []


def test_a_failing_system_is_counted_and_ends_with_an_error(tmp_path, endpoint, monkeypatch):
    monkeypatch.setattr(sweep_module, "WAITS_S", ())
    server = endpoint()
    rows = [taken(str(n)) for n in range(8)]
    more = ["gsrm.judge=normalised", "gsrm.llm.decomposer.constrain=none", "gsrm.evaluation.concurrency=1"]
    cfg = load("gsrm_data", settings(tmp_path, server, rows, *more))
    server.behaviour.faults = {"fail": 1.0}
    with pytest.raises(ServiceError, match=r"8 of 8 rows have no result .*backend_unavailable"):
        run(cfg)
    whole = figures_of(tmp_path)["decompositions"]["all"]
    assert whole["failures"] == {"backend_unavailable": 3, "not_asked": 5}
    assert whole["parse_rate"] is None and whole["steps"]["f1"] is None


def test_only_held_out_problems_are_measured(tmp_path, endpoint):
    rows = [taken(str(n)) for n in range(40)]
    more = ["gsrm.judge=normalised", "gsrm.evaluation.held_out=0.25"]
    run(load("gsrm_data", settings(tmp_path, endpoint(), rows, *more)))
    held_out = dataset.split(rows, 0.25)[1]
    assert figures_of(tmp_path)["decompositions"]["all"]["rows"] == len(held_out) < 20
    with pytest.raises(InputError, match=r"no problem is among the gsrm.evaluation.held_out=0.0"):
        run(load("gsrm_data", settings(tmp_path, endpoint(), rows, "gsrm.evaluation.held_out=0.0")))


def test_a_stop_leaves_no_figures(tmp_path, endpoint, monkeypatch):
    monkeypatch.setitem(sweep_module.sweep.__kwdefaults__, "stop", lambda: True)
    with pytest.raises(Preempted, match="no middle"):
        run(load("gsrm_data", settings(tmp_path, endpoint(), [taken("r")])))
    assert not (tmp_path / "out").exists()


def test_bad_input_is_exit_code_2(tmp_path):
    with pytest.raises(ConfigError, match="gsrm.evaluation.data is not set"):
        run(load("gsrm_data"))
    (tmp_path / "rows.jsonl").write_text('{"id": "a"}\n')
    command = [sys.executable, "examples/evaluate_gsrm.py", f"gsrm.evaluation.data={tmp_path}/rows.jsonl"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 2 and "rows.jsonl:1: 'domain' is missing" in ended.stderr
