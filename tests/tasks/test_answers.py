import time

import pytest

from rlkd_nemo.tasks.answers import equal, final_answer, normalised


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("x</think><answer> 4 </answer>", "4"),
        ("<answer>1</answer></think><answer>2</answer>", "2"),  # the one after the thinking
        ("</think><answer>1</answer><answer>2</answer>", "2"),  # several guesses are one: the last
        ("</think><answer>1<answer>2</answer>", "2"),
        (r"</think><answer>so \boxed{\frac{1}{2}}.</answer>", r"\frac{1}{2}"),
        (r"</think>It is \boxed{3} or rather \boxed{ 4}.", "4"),
        (r"thinking \boxed{3}", "3"),  # no end of thinking: the whole text
        (r"\boxed{3}</think> none", None),
        (r"\boxed{1} and \boxed{2", "1"),  # braces that never close are no box
        ("</think><answer></answer>", ""),
        ("4</answer>", None),
        ("<answer>4", None),
        ("", None),
    ],
)
def test_final_answer(response, answer):
    assert final_answer(response) == answer


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("1/2", "0.50"), (r"\frac{1}{2}", "0.5"), ("1,000", "1000"), ("+3", "3"), ("1e3", "1000.0"), ("$7$", "7."),
        ("-\\frac{3}{4}", "-0.75"), ("\u22125", "-5"), (".5", "0.5"), ("Paris.", "paris"), ("a  b", "A b"),
        ("2 * 3", "2*3"), ("“yes”", "yes"), ("first, add", "first add"), ("Reduce the left side.-", "reduce the left side"),
        (r"\(12\)", "12"), ("**x**", "x"),
    ],
)  # fmt: skip
def test_equal(left, right):
    assert equal(left, right) and equal(right, left)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("2*3", "2+3"), ("5!", "5"), ("-5", "5"), ("1/2", "1/3"), ("1/0", "0"), ("12", "1 2 x"), ("1.5", "15"),
        ("1e3", "1e4"), ("", "0"), ("1,00", "100"), ("x", "y"), ("a b", "ab"), ("3:4", "34"),
    ],
)  # fmt: skip
def test_not_equal(left, right):
    assert not equal(left, right) and not equal(right, left)


def test_hostile_text_costs_no_time():
    started = time.thread_time()
    for text in ("1e999999999", "." * 40_000, "9" * 40_000, "\\boxed{" * 10_000, "<answer>" * 10_000, " " * 40_000):
        final_answer(text)
        normalised(text)
        equal(text, "1")
    assert time.thread_time() - started < 2
