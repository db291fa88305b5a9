import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkd_nemo.gsrm.steps import format, parse, thinking
from rlkd_nemo.types import Step

ONE = [Step("x", "q", "5")]


META = ["Meat-reasoning", "Meta-reasoning", "sub-think", "subthink", "META-REASONING", "Sub-Think"]
QUESTION = ["Sub-problem", "Subproblem", "Query", "query"]
ANSWER = ["Answer", "ANSWER"]


@pytest.mark.parametrize(
    "shape",
    [
        "[{} 1]:", "[{}]", "[{}1]", "[{} 1.]", "[{}]:", "[ {} 12 ] :", "**[{} 1]**:", "**[{} 1]:**", "### [{} 1]:",
        "- [{} 1]", "*[{}]*", "> **[{} 3]**",
    ],
)  # fmt: skip
def test_every_spelling(shape):
    for names in itertools.product(META, QUESTION, ANSWER):
        meta, question, answer = (shape.format(name) for name in names)
        assert parse(f"{meta} x\n{question} q\n{answer} 5\n") == ONE, names


def test_the_published_line():
    assert parse("[sub-think 1]: x [Query 1]: q [Answer 1]: 5") == ONE
    assert parse("[Meat-reasoning 1]: x [Sub-problem 1]: q [Answer 1]: 5") == ONE


def test_a_released_training_target():
    text = """[Response]:
[Meat-reasoning 1]: Find the price of one.-
[Sub-problem 1]: What does one cost?
[Answer 1]: 3

[Meat-reasoning 2]: Multiply.-
[Sub-problem 2]: What do four cost?
[Answer 2]: 12

So the final answer is:
12</answer>
<|endoftext|>"""
    assert parse(text) == [
        Step("Find the price of one.-", "What does one cost?", "3"),
        Step("Multiply.-", "What do four cost?", "12"),
    ]


def test_markdown_around_a_whole_field():
    assert parse("**[Meta-reasoning 1]: go left**\n**[Answer 1]:** 5") == [Step("go left", None, "5")]
    # asterisks of the text itself stay
    assert parse("[Meta-reasoning 1]: *now* [Sub-problem 1]: 2**3 [Answer 1]: **8**") == [
        Step("*now*", "2**3", "**8**")
    ]


def test_missing_fields_keep_their_place():
    text = "[sub-think 1] a [Answer 1] 1 [sub-think 2] b [Query 2] q [sub-think 3] c [Query 3] r [Answer 3] 3"
    assert parse(text) == [Step("a", None, "1"), Step("b", "q", None), Step("c", "r", "3")]


def test_a_field_out_of_place_opens_a_step_without_meta():
    assert parse("[Query] q [sub-think] a [Answer] 1 [Query] r [Answer] 2") == [
        Step("", "q", None), Step("a", None, "1"), Step("", "r", "2"),
    ]  # fmt: skip


def test_numbers_in_tags_are_not_trusted():
    assert [s.meta for s in parse("[sub-think 7] a [sub-think 7] b [sub-think 1] c")] == ["a", "b", "c"]


def test_no_meta_tag_no_steps():
    assert parse("[Query 1] q [Answer 1] 5") == [] and parse("") == [] and parse("answer: meta-reasoning") == []


def test_only_the_last_field_loses_the_tail():
    text = "[sub-think] So the final answer is near [Answer] 1 [sub-think] b [Query] q [Answer] 2\nSo the final answer is: 2"
    assert parse(text) == [Step("So the final answer is near", None, "1"), Step("b", "q", "2")]
    assert parse("[sub-think] a [Query] q\n**So the final answer is** 5") == [Step("a", "q", None)]


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("<think>a</think>b", "a"), ("a</think>b", "a"), ("<think>a", "a"), ("x<think>a", "a"), ("a", "a"),
        ("<THINK>a</Think>b", "a"), ("<think></think>b", ""), ("<think>a<think>b</think>", "a\nb"), ("a</think><think>b", "a"),
    ],
)  # fmt: skip
def test_thinking_only(text, inside):
    assert thinking(text) == inside


def test_steps_after_the_thinking_do_not_count():
    assert parse("<think>[sub-think] a</think>[sub-think] b") == [Step("a")]
    assert parse("<think>[sub-think] a [sub-think] b") == [Step("a"), Step("b")]


def test_format_is_one_spelling():
    assert format([Step("a", "q", "1"), Step("b", None, "2"), Step("c")]) == (
        "[Meta-reasoning 1]: a\n[Sub-problem 1]: q\n[Answer 1]: 1\n\n"
        "[Meta-reasoning 2]: b\n[Answer 2]: 2\n\n[Meta-reasoning 3]: c"
    )
    assert format([]) == ""


fragments = st.sampled_from(
    ["[", "]", "[Meta-reasoning 1]", "[sub-think]:", "**[Query 2]**", "[Answer", "[answer 3]: ", "**", "*", "`", ":", "::",
     "\n", "\n\n", " ", "- ", "# ", "> ", "<think>", "</think>", "</answer>", "So the final answer is", "<th", "ink>", "x",
     "5", "__[Sub-problem]", "_", "\u2028", "\x1c", "meta-reasoning", "\t", "\r"]
)  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(st.one_of(st.text(max_size=80), st.lists(fragments, max_size=25).map("".join)))
def test_parse_never_raises_and_format_round_trips(text):
    steps = parse(text)
    assert parse(format(steps)) == steps
    assert all(step.meta == step.meta.strip() for step in steps)


plain = st.text(st.characters(whitelist_categories=("L", "N", "P", "S")), min_size=1, max_size=12).filter(
    lambda text: not set("[<:") & set(text)
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.builds(Step, plain, st.none() | plain, st.none() | plain), max_size=5))
def test_parse_gives_back_what_format_wrote(steps):
    assert parse(format(steps)) == steps


def test_hostile_text_costs_no_time():
    started = time.thread_time()
    for text in (
        "[answer" + " " * 50_000,
        "[" * 50_000,
        "*" * 50_000,
        "[answer 1] " * 10_000,
        "<think>" * 10_000,
        " \n" * 50_000,
    ):
        parse(text)
    assert time.thread_time() - started < 3
