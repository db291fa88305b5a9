"""Rows of GSRM data: read with every bad line named, written back equal, and turned into the very prompts that are served."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkd_nemo.config.ranges import DOMAINS
from rlkd_nemo.errors import InputError, PromptFileError
from rlkd_nemo.gsrm import dataset, schema
from rlkd_nemo.gsrm.dataset import DecompositionRow, Pair, ResponseRow, VerdictRow, conversation, parse, read, split
from rlkd_nemo.gsrm.prompting import Prompts
from rlkd_nemo.gsrm.verdict_reply import read_verdicts
from rlkd_nemo.types import Step

PROMPTS = Prompts()
STEPS = (Step("the bracket first", "What is 3+4?", "7"), Step("then the product", None, "14"))
TAKEN = DecompositionRow("d1", "math", "What is 2*(3+4)?", "<think>First 3+4, 7. Then 14.</think> 14", STEPS, "me")
COMPARED = VerdictRow("v1", "What is 2*(3+4)?", "answer", "1/2", "0.5", True)
JUDGED = ResponseRow(
    "a1",
    "What is 2*(3+4)?",
    (
        Pair({"meta": "the sum", "answer": "7"}, {"meta": "add", "answer": "8"}, {"meta": True, "answer": False}),
        Pair({"meta": "double"}, {"meta": "halve"}, {"meta": False}),
    ),
)


def fields(row=TAKEN, **changed):
    whole = json.loads(dataset.line(row)) | changed
    return {key: value for key, value in whole.items() if value is not ...}


def test_rows_come_back_from_a_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(dataset.line(TAKEN) + "\n" + dataset.line(COMPARED) + dataset.line(JUDGED))
    assert read(path, "k") == [TAKEN, COMPARED, JUDGED]
    assert json.loads(dataset.line(COMPARED))["verdict"] == "yes" and "source" not in dataset.line(COMPARED)


BAD = [
    ({"steps": ...}, "'steps' is missing"),
    ({"extra": 1}, "the key 'extra' is unknown"),
    ({"id": 7}, "'id' is int; wanted text"),
    ({"problem": " "}, "'problem' is empty"),
    ({"domain": "poetry"}, "'domain' is 'poetry'; wanted one of math"),
    ({"text": "</think> 14"}, "no thinking"),
    ({"text": "a\ud800"}, "half a surrogate pair at character 1"),
    ({"steps": {}}, "'steps' is dict; wanted a list"),
    ({"steps": ["a"]}, "step 1 is str"),
    ({"steps": [{"meta": "a"}]}, "step 1 has the keys"),
    ({"steps": [{"meta": None, "question": None, "answer": None}]}, "step 1: meta is NoneType"),
    ({"steps": [{"meta": "", "question": None, "answer": None}]}, r"'steps\[1\].meta' is empty"),
    ({"verdict": "yes"}, "'kind' is missing"),
]


@pytest.mark.parametrize(("changed", "reason"), BAD)
def test_a_bad_row_is_refused_by_its_first_fault(changed, reason):
    with pytest.raises(InputError, match=reason):
        parse(fields(**changed))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"kind": "tone"}, "'kind' is 'tone'"),
        ({"verdict": "Yes"}, "'verdict' is 'Yes'"),
        ({"teacher": ...}, "'teacher'"),
    ],
)
def test_a_bad_verdict_is_refused(changed, reason):
    with pytest.raises(InputError, match=reason):
        parse(fields(COMPARED, **changed))


PAIR = {"teacher": {"meta": "a"}, "student": {"meta": "b"}, "verdicts": {"meta": "no"}}


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        ([], r"'pairs' is \[\]; wanted a list with at least one"),
        ("a", "'pairs' is \"a\""),
        ([{"teacher": {}}], r"'pairs\[1\]' has not exactly the keys teacher, student, verdicts"),
        ([PAIR, {**PAIR, "verdicts": {}}], r"'pairs\[2\].teacher' does not have the fields that are compared"),
        ([{**PAIR, "student": {"answer": "b"}}], r"'pairs\[1\].student' does not have"),
        ([{**PAIR, "teacher": {"meta": "a", "tone": "b"}}], r"'pairs\[1\].teacher' does not have"),
        ([{**PAIR, "teacher": {"meta": None}}], r"'pairs\[1\].teacher.meta' is NoneType"),
        ([{**PAIR, "student": {"meta": " "}}], r"'pairs\[1\].student.meta' is empty"),
        ([{**PAIR, "verdicts": {"meta": "maybe"}}], r"'pairs\[1\].verdicts.meta' is 'maybe'"),
        ([{**PAIR, "verdicts": {"meta": True}}], r"'pairs\[1\].verdicts.meta' is bool"),
        ([{**PAIR, "verdicts": ["meta"]}], r"'pairs\[1\].teacher' does not have"),
    ],
)
def test_bad_verdicts_of_a_response_are_refused(pairs, reason):
    with pytest.raises(InputError, match=reason):
        parse(fields(JUDGED, pairs=pairs))


def test_every_bad_line_of_a_file_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [dataset.line(TAKEN).encode(), b"{\n", b"[1]\n", b'{"id": "\xff"}\n', dataset.line(TAKEN).encode()]
    path.write_bytes(b"".join(lines))
    with pytest.raises(PromptFileError) as found:
        read(path, "k")
    starts = [problem.removeprefix(f"{path}:")[:20] for problem in found.value.problems]
    assert starts == ["2: no JSON (Expectin", "3: found list, wante", "4: no UTF-8 at byte ", "5: id 'd1' is also t"]
    path.write_text("\n")
    with pytest.raises(InputError, match=r"k=.*holds no row"):
        read(path, "k")
    with pytest.raises(InputError, match=r"k=.*cannot be read"):
        read(tmp_path / "absent", "k")


def test_a_row_that_tags_cannot_carry_is_refused_for_tags_only():
    row = fields(steps=[{"meta": "look at [Answer 1]: this", "question": None, "answer": None}])
    assert parse(row, "json").steps[0].meta.startswith("look")
    with pytest.raises(InputError, match="do not come back from tags"):
        parse(row, "tags")


@pytest.mark.parametrize("form", ["json", "tags"])
@pytest.mark.parametrize("domain", DOMAINS)
def test_the_worked_examples_are_rows_and_their_replies_are_those_of_the_prompt(domain, form):
    for number, example in enumerate(PROMPTS.examples[domain]):
        row = DecompositionRow("e", domain, example.problem, example.text, example.steps)
        found = conversation(row, PROMPTS, form)
        shown = [m["content"] for m in found.messages if m["role"] == "assistant"]
        assert found.completion == shown[number] and found.cut_chars == 0
        assert tuple(schema.read(found.completion, form)) == row.steps


def test_a_conversation_is_the_request_of_the_service():
    found = conversation(TAKEN, PROMPTS, "json")
    asked = PROMPTS.decomposition(TAKEN.problem, "First 3+4, 7. Then 14.", "math", "json")
    assert found.messages == asked.messages  # the answer after </think> is not shown
    assert json.loads(found.completion)["steps"][1] == {"meta": "then the product", "question": None, "answer": "14"}
    judged = conversation(COMPARED, PROMPTS, "json")
    assert judged.messages == PROMPTS.question("answer", "1/2", "0.5", COMPARED.problem).messages
    assert judged.completion == "yes"
    whole = conversation(JUDGED, PROMPTS, "json")
    assert json.loads(whole.completion) == {"1": {"meta": "yes", "answer": "no"}, "2": {"meta": "no"}}
    assert read_verdicts(whole.completion, {1: ("meta", "answer"), 2: ("meta",)}) == JUDGED.verdicts
    cut = conversation(TAKEN, Prompts(max_text_chars=10), "json")
    assert cut.cut_chars > 0


def test_a_text_without_reasoning_has_no_steps_in_either_form():
    row = parse(fields(steps=[]))
    assert conversation(row, PROMPTS, "json").completion == '{"steps": []}'
    assert conversation(row, PROMPTS, "tags").completion == schema.NO_STEPS


def test_the_split_keeps_problems_together_and_moves_none():
    found = [DecompositionRow(f"{n}-{i}", "math", f"problem {n}", "t", STEPS) for n in range(200) for i in range(2)]
    train, held_out = split(found, 0.25)
    assert len(train) + len(held_out) == 400 and 60 < len(held_out) < 140
    assert not {row.problem for row in train} & {row.problem for row in held_out}
    assert split(found[::-1], 0.25)[1] == held_out[::-1]
    assert split(found, 0.0) == (found, []) and split(found, 1.0) == ([], found)


words = st.text(min_size=1, max_size=20).filter(lambda text: text.strip())


@settings(deadline=None)
@given(st.lists(st.builds(Step, words, st.none() | words, st.none() | words), max_size=4))
def test_any_steps_go_through_json(steps):
    row = DecompositionRow("r", "code", "p", "t", tuple(steps))
    assert parse(json.loads(dataset.line(row))) == row
    assert tuple(schema.read(conversation(row, PROMPTS, "json").completion, "json")) == row.steps
