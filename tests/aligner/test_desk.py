import math
import re

import pytest

from rlkd_nemo.aligner.desk import RewardDesk, Row
from rlkd_nemo.errors import InputError
from rlkd_nemo.types import Component, Failure, Problem, Score

WORDS = ["<eos>", "a", "b", "=", "yes", "no", "\n"]


class Words:
    """Ids of words; decoding puts a space between them."""

    vocab_size, eos_id, pad_id = len(WORDS), 0, 0

    def encode(self, text):
        return [WORDS.index(word) for word in re.findall(r"<eos>|\S", text)]

    def decode(self, ids):
        return " ".join(WORDS[i] for i in ids if i != self.eos_id)

    def pieces(self):
        return WORDS


class Says:
    """1 for `yes`, 0 for anything else; the system fails on `no`."""

    def __init__(self):
        self.seen = []

    def score(self, rollouts):
        self.seen += rollouts
        failed = Component(None, Failure.TIMEOUT)
        return [
            Score({"outcome": failed}, None) if "no" in r.text else Score({}, float(r.text.split() == ["yes"]))
            for r in rollouts
        ]


@pytest.fixture
def desk():
    return RewardDesk(Says(), [Problem("1", "a =", "1"), Problem("2", "a = b =", "2")], Words())


def test_a_row_is_scored_for_the_problem_of_its_prompt(desk):
    # The second prompt begins with the first; the client that sends no prompt length is understood too.
    rows = [Row([1, 3, 4, 0], prompt_length=2), Row([1, 3, 4, 0]), Row([1, 3, 2, 3, 4, 0]), Row(text="a=b= yes")]
    assert desk.rewards(rows) == [1.0] * 4
    assert [r.problem.id for r in desk.scorer.seen] == ["1", "1", "2", "2"]
    assert desk.scorer.seen[0].response_ids == [4, 0]


def test_a_prompt_whose_turns_end_with_the_end_of_text_is_recognised():
    # As chat templates write it; the token is not in the decoded text, but in that of a client that sends text.
    desk = RewardDesk(Says(), [Problem("1", "a<eos> b =", "1")], Words())
    rows = [Row([1, 0, 2, 3, 4, 0], prompt_length=4), Row([1, 0, 2, 3, 4, 0]), Row(text="a<eos> b = yes")]
    assert desk.rewards(rows) == [1.0] * 3


def test_an_unfinished_response_is_told_apart(desk):
    desk.rewards([Row([1, 3, 4], prompt_length=2), Row([1, 3, 4, 0], prompt_length=2)])
    assert [r.truncated for r in desk.scorer.seen] == [True, False]


def test_a_response_may_end_with_a_string_of_the_actors_settings():
    # As Nemotron's <extra_id_1>: it ends the response and is no part of what is scored; <other> is no token here.
    desk = RewardDesk(Says(), [Problem("1", "a =", "1")], Words(), end_strings=["b", "<other>"])
    assert desk.rewards([Row([1, 3, 4, 2], prompt_length=2), Row([1, 3, 4, 2]), Row([1, 3, 4])]) == [1.0] * 3
    assert [r.truncated for r in desk.scorer.seen] == [False, False, True]
    assert desk.scorer.seen[0].response_ids == [4, 2]


def test_fillers_strangers_and_failures_have_no_reward_and_the_log_names_them(desk, caplog):
    rewards = desk.rewards(
        [Row(), Row([2, 3, 4, 0], label="train-3-1"), Row([1, 3, 5, 0], label="x"), Row([1, 3, 4, 0])]
    )
    assert [math.isnan(r) for r in rewards] == [True, True, True, False]
    assert (
        "train-3-1: its prompt belongs to no problem" in caplog.text
        and "x: no reward ({'outcome': 'timeout'})" in caplog.text
    )


def test_line_breaks_of_a_response_survive(desk):
    desk.rewards([Row(text="a =\nyes\nno")])
    assert desk.scorer.seen[0].text == "\nyes\nno"


def test_prompts_that_cannot_be_told_apart_are_refused():
    with pytest.raises(InputError, match="1 and 2 have the same prompt"):
        RewardDesk(Says(), [Problem("1", "a =", "1"), Problem("2", "a  =", "2")], Words())
    with pytest.raises(InputError, match="no problem"):
        RewardDesk(Says(), [], Words())
