"""Steps out of a growing text: the same as out of the whole, whatever the pieces."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlkd_nemo.errors import BadReply
from rlkd_nemo.gsrm import schema
from rlkd_nemo.gsrm import steps as tags
from rlkd_nemo.gsrm.stream import Field, StepEnd, reader
from rlkd_nemo.types import Step

# Words that a tag, a tail or an escape can be made of, and some that only look like it.
PIECES = st.sampled_from(
    ["[Meta-reasoning 1]:", "[Sub-problem 1]: ", "[Answer 2]", "**[answer]**", "**[query]:", "\n- [sub-think 3]", "[", "]",
     "[Meta", "-reasoning", " 1", ":", "\n", "x", "So the final answer is: 3", "</answer>", "<think>", "</think>", "**",
     "[No steps]", " ", "\\", '"', "\u00e9"]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=14).map("".join)
VALUES = st.text(st.sampled_from('ab "\\\n\u00e9\U0001f600{}[],:'), max_size=8)
STEPS = st.lists(st.builds(Step, VALUES, st.none() | VALUES, st.none() | VALUES), max_size=4)


def cut(draw_cuts, text):
    places = sorted({min(c, len(text)) for c in draw_cuts})
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)])]


def streamed(form, pieces):
    """Steps by their ends and by their fields, which must agree; None for a bad reply."""
    read, events = reader(form), []
    try:
        for piece in pieces:
            events += read.feed(piece)
        events += read.close()
    except BadReply:
        return None
    ends = [event for event in events if isinstance(event, StepEnd)]
    assert [end.index for end in ends] == list(range(len(ends)))
    built = [{"meta": "", "question": None, "answer": None} for _ in ends]
    for event in events:
        if isinstance(event, Field):
            built[event.step][event.name] = event.value
    assert [Step(**fields) for fields in built] == [end.step for end in ends]
    return [end.step for end in ends]


def whole(form, text):
    try:
        return schema.read(text, form)
    except BadReply:
        return None


CUTS = st.lists(st.integers(0, 200), max_size=12)


@settings(deadline=None)
@given(TEXTS, CUTS)
@example("[Meta-reasoning 1]", [3])
@example("[Answer 1] a **[query]** b [sub-think] c", [12, 20])
@example(" <think>[Meta-reasoning 1]: no</think>[Meta-reasoning 1]: yes", [2, 4, 40])
@example("<thi", [2])
def test_tags(text, cuts):
    assert streamed("tags", cut(cuts, text)) == whole("tags", text)


@settings(deadline=None)
@given(STEPS, CUTS, st.sampled_from([None, 1, 4]))
def test_json(steps, cuts, indent):
    text = json.dumps(json.loads(schema.write(steps, "json")), indent=indent)
    assert streamed("json", cut(cuts, text)) == whole("json", text) == steps


@settings(deadline=None)
@given(
    STEPS, CUTS, st.integers(0, 400), st.sampled_from(["", "}", '"', "null", "\x00", "[", "\\", ',"meta":"x"', "{}"])
)
def test_damaged_json(steps, cuts, place, inserted):
    text = schema.write(steps, "json")
    text = text[:place] + inserted + (text[place + 1 :] if not inserted else text[place:])
    assert streamed("json", cut(cuts, text)) == whole("json", text)


@settings(deadline=None)
@given(STEPS, CUTS, st.integers(0, 400))
def test_json_that_breaks_off_is_never_steps(steps, cuts, place):
    text = schema.write(steps, "json")
    if place < len(text):
        assert streamed("json", cut(cuts, text[:place])) is None


@pytest.mark.parametrize(("form", "upto"), [("json", '"m two",'), ("tags", "m two\n[Sub-problem 2]")])
def test_a_field_comes_out_as_soon_as_it_is_complete(form, upto):
    text = schema.write([Step("m one", "q", "a"), Step("m two", "q", "a")], form)
    read, seen = reader(form), []
    for char in text[: text.index(upto) + len(upto)]:
        seen += read.feed(char)
    assert seen[-1] == Field(1, "meta", "m two") and seen[-2] == StepEnd(0, Step("m one", "q", "a"))


def test_one_schema():
    # Prompts, parsers and constraint share the names of the fields, in the order that lazy scoring needs.
    items = schema.SCHEMA["properties"]["steps"]["items"]
    assert tuple(items["properties"]) == tuple(items["required"]) == schema.FIELDS == tuple(tags.LABELS)
    steps = [Step("m", "q", "a"), Step("n", None, None)]
    assert schema.read(schema.write(steps, "tags"), "tags") == schema.read(schema.write(steps, "json"), "json") == steps
    assert schema.read(schema.write([], "tags"), "tags") == schema.read(schema.write([], "json"), "json") == []


@pytest.mark.parametrize(
    "reply",
    ["", "sorry", '{"steps": [', '[{"meta": "m"}]', '{"steps": [{"meta": "m", "question": "q"}]}', "<html></html>",
     '{"steps": [{"meta": null, "question": "q", "answer": "a"}]}', '{"steps": [{"meta":1,"question":"","answer":""}]}',
     '{"steps": [], "steps": []}', '{"steps": [3]}', "[" * 100_000],
)  # fmt: skip
def test_a_reply_in_another_form_is_told(reply):
    with pytest.raises(BadReply):
        schema.read(reply, "json")


def test_no_tags_is_a_bad_reply_not_an_empty_decomposition():
    with pytest.raises(BadReply, match="no \\[Meta-reasoning n\\] tag"):
        schema.read("I cannot do that.", "tags")
    with pytest.raises(BadReply, match="does not end"):
        schema.read("<think>[Meta-reasoning 1]: a", "tags")
