"""Verdict rows of the labelling model: which steps meet, the format served, resumed, rejects named. Stand-in endpoint."""

import asyncio
import json

import pytest

from benchmarks.gsrm_endpoint import stand_in
from rlkd_nemo.config.load import load
from rlkd_nemo.config.schema import Label
from rlkd_nemo.errors import InputError, Preempted, ServiceError
from rlkd_nemo.gsrm import dataset
from rlkd_nemo.gsrm.dataset import DecompositionRow, ResponseRow, VerdictRow
from rlkd_nemo.gsrm.service import evaluate, label, label_verdicts
from rlkd_nemo.gsrm.service.label_verdicts import comparisons, pairs
from rlkd_nemo.gsrm.service.mathematics import MathVerify
from rlkd_nemo.types import Step

TEXTS = [  # of two problems; the stand-in takes `aim: question = answer` apart and compares words
    ("p", ["add: sum of a and b = in 5", "Add: sum of a and b = in 6"]),
    ("q", ["halve: half of c = in 1\ndouble: twice c = in 4", "halve: half of c = in 1\ntriple: twice c = in 4"]),
]


def taken(problem, *metas):
    return DecompositionRow("-".join(metas), "math", problem, "t", tuple(Step(meta) for meta in metas))


def metas(rows, **settings):
    found = pairs(rows, Label(**settings))
    return [(problem, [f"{teacher.meta}{student.meta}" for teacher, student in pair]) for problem, pair in found]


def test_texts_of_a_problem_meet_and_then_other_places_and_problems():
    rows = [taken("p", "a", "b", "c"), taken("q", "x", "y"), taken("p", "d", "e"), taken("p", "f")]
    assert metas(rows) == [("p", ["ad", "be"]), ("p", ["ae", "bx", "ce"])]  # b: of the other problem's
    assert metas(rows, mixed=0, text_pairs=9) == [("p", ["ad", "be"]), ("p", ["af"]), ("p", ["df"])]
    alone = [taken("p", "a", "b"), taken("p", "c")]
    assert metas(alone, mixed=2) == [("p", ["ac"]), ("p", ["bc"]), ("p", ["bc"])]  # a would meet its own place
    assert metas([taken("p", "a"), DecompositionRow("none", "math", "p", "t", ())]) == []


def test_each_comparison_is_asked_once_and_mathematics_is_not_asked_about():
    steps = [(Step("a", "q", "1/2"), Step("b", "q", "in 2")), (Step("a", "q", "0.5"), Step("b", None, "in 3"))]
    rows = [DecompositionRow(str(n), "math", "p", "t", found) for n, found in enumerate(steps)]

    def asked(per_response, **settings):
        found = asyncio.run(comparisons(rows, Label(**settings), per_response, MathVerify(1.0)))
        return [[(n, q.kind, q.teacher, q.student) for n, q in comparison.questions] for comparison in found]

    whole = [(1, "meta", "a", "a"), (1, "question", "q", "q"), (2, "meta", "b", "b"), (2, "answer", "in 2", "in 3")]
    assert asked(True, mixed=0) == [whole]  # 1/2 is 0.5 without a model
    assert asked(False, mixed=0) == [[(1, *question)] for _, *question in whole]
    assert len(asked(False, mixed=9)) == len({tuple(question) for (question,) in asked(False, mixed=9)})


@pytest.fixture
def overrides(tmp_path):
    def of(server, *more):
        lines = [{"problem": p, "answer": "5", "teacher_paths": texts} for p, texts in TEXTS]
        (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        backend = "gsrm.llm.decomposer"
        return [
            "task=prompts", f"task.path={tmp_path}/p.jsonl", f"exp_manager.exp_dir={tmp_path}/out",
            f"{backend}.urls=[{server.url}]", f"{backend}.model=stand-in", f"{backend}.api_key_env=null",
            f"{backend}.attempts=1", "gsrm.label.verdicts=both", *more,
        ]  # fmt: skip

    return of


def rows_of(tmp_path, row_type):
    return [row for row in dataset.read(tmp_path / "out/gsrm_data.jsonl", "k") if isinstance(row, row_type)]


def summary_of(tmp_path):
    return json.loads((tmp_path / "out" / label.SUMMARY).read_text())


def test_verdicts_of_both_formats_are_rows(tmp_path, endpoint, overrides):
    server = endpoint()
    run = lambda *more: label.run(load("gsrm_data", overrides(server, *more)))  # noqa: E731
    run()
    # Texts of a problem: p has one step, q two; mixed: p's meets q's second, q's first meets its second place, and p's.
    said = {(row.kind, row.teacher, row.student): row.same for row in rows_of(tmp_path, VerdictRow)}
    assert said["meta", "add", "Add"] and said["meta", "halve", "halve"] and not said["meta", "double", "triple"]
    assert not said["answer", "in 5", "in 6"] and not said["meta", "halve", "triple"]
    assert ("meta", "double", "add") in said and ("meta", "add", "double") in said  # of the other problem
    found = rows_of(tmp_path, ResponseRow)
    assert [len(row.pairs) for row in found if row.problem == "q"] == [2, 2] and len(found) == 4
    for row in found:
        for (_, question), same in zip(row.questions, row.verdicts.values()):
            assert said[question.kind, question.teacher, question.student] is same
    assert all("stand-in" in row.source and "per_response" in row.source for row in found)
    told = summary_of(tmp_path)
    assert told["rows"] == told["made"] == 4 and told["verdicts"]["per_response"]["made"] == 4
    assert told["verdicts"]["per_pair"]["rows"] == len(said) == told["verdicts"]["per_pair"]["made"]
    assert sum(told["verdicts"]["per_pair"]["said"].values()) == len(said)
    assert server.counters["calls"] == 1 + 4 + len(said) + 4  # the first one tried the constraint
    # All of it is there: nothing is asked, and a line that was cut off in the middle is asked for again.
    before = server.counters["calls"]
    run()
    assert server.counters["calls"] == before + 1 and summary_of(tmp_path)["verdicts"]["per_pair"]["there_before"]
    out = tmp_path / "out/gsrm_data.jsonl"
    out.write_bytes(out.read_bytes()[:-20])
    run()
    assert server.counters["calls"] == before + 3 and rows_of(tmp_path, ResponseRow) == found


def test_replies_that_are_no_verdict_are_rejects(tmp_path, endpoint, overrides):
    def moody(messages, form):
        if messages[-1]["content"].endswith(("yes or no", "pair.", "pairs.")) and "double" in messages[-1]["content"]:
            return "perhaps"
        return stand_in(messages, form)

    label.run(load("gsrm_data", overrides(endpoint(moody, constrains=()), "gsrm.llm.decomposer.constrain=none")))
    rejects = [json.loads(line) for line in (tmp_path / "out" / label.REJECTS).read_text().splitlines()]
    assert {line["reason"].split(";")[0] for line in rejects} >= {"the judge replied 'perhaps'"}
    assert any("the judge's verdicts are no JSON" in line["reason"] for line in rejects)
    named = [question for line in rejects for question in line["questions"]]
    assert {"pair": 1, "kind": "meta", "teacher": "add", "student": "double"} in named
    assert not any("double" in (row.teacher, row.student) for row in rows_of(tmp_path, VerdictRow))
    assert sum(each["rejected"] for each in summary_of(tmp_path)["verdicts"].values()) == len(rejects)


def test_a_stop_among_the_verdicts_keeps_them(tmp_path, endpoint, overrides, monkeypatch):
    server = endpoint()
    cfg = load("gsrm_data", overrides(server, "gsrm.label.concurrency=1"))
    with monkeypatch.context() as patch:
        stop = (lambda: server.counters["calls"] >= 8,)
        patch.setattr(label_verdicts.VerdictLabeller.label, "__defaults__", stop)
        with pytest.raises(Preempted, match="verdicts per_pair: 3 made, .* left"):
            label.run(cfg)
    assert len(rows_of(tmp_path, VerdictRow)) == 3
    label.run(cfg)
    assert summary_of(tmp_path)["verdicts"]["per_pair"]["there_before"] == 3


def test_what_cannot_be_compared_is_said_before_anything_is_asked(tmp_path, endpoint, overrides):
    server = endpoint()
    settings = overrides(server)
    lines = (tmp_path / "p.jsonl").read_text().replace("teacher_paths", "teacher_path")
    one = [{**json.loads(line), "teacher_path": "add: a = 1"} for line in lines.splitlines()]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in one))
    with pytest.raises(InputError, match=r"gsrm.label.verdicts=both .* none has two"):
        label.run(load("gsrm_data", settings))
    assert not server.counters["calls"]


def test_an_endpoint_that_fails_leaves_named_failures(tmp_path, endpoint, overrides, monkeypatch):
    monkeypatch.setattr("rlkd_nemo.gsrm.service.sweep.WAITS_S", ())
    server = endpoint()
    unprobed = overrides(server, "gsrm.llm.decomposer.constrain=none")
    label.run(load("gsrm_data", [*unprobed, "gsrm.label.verdicts=none"]))
    server.behaviour.faults = {"fail": 1.0}
    with pytest.raises(ServiceError, match="comparisons have no label .*verdicts per_pair: .*failed"):
        label.run(load("gsrm_data", unprobed))
    failures = [each["failures"] for each in summary_of(tmp_path)["verdicts"].values()]
    assert all(sum(each.values()) and each.keys() <= {"backend_unavailable", "not_asked"} for each in failures)
    assert not rows_of(tmp_path, VerdictRow) and summary_of(tmp_path)["there_before"] == 4


def test_who_labelled_agrees_with_the_labels(tmp_path, endpoint, overrides):
    settings = overrides(endpoint())
    label.run(load("gsrm_data", settings))
    judge = [word.replace("decomposer", "judge") for word in settings if "decomposer" in word]
    data = tmp_path / "out/gsrm_data.jsonl"
    evaluate.run(load("gsrm_data", [*settings, *judge, f"gsrm.evaluation.data={data}"]))
    found = json.loads((tmp_path / "out" / evaluate.RESULT).read_text())
    verdicts = found["verdicts"]
    assert found["decompositions"]["all"]["steps"]["f1"] == verdicts["all"]["agreement"] == 1.0
    assert verdicts["per_response"]["agreement"] == 1.0 and verdicts["per_response"]["rows"] == 4
    # Six pairs, all fields; but where two answers are the same text, no model is asked.
    assert verdicts["per_response"]["judged"] == 6 * 3 - 2 and not verdicts["all"]["failures"]
