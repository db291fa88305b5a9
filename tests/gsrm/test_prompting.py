"""Prompts: worked examples in the one schema, untrusted text behind a fence, templates that users replace."""

import json
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkd_nemo.config.ranges import DOMAINS
from rlkd_nemo.errors import InputError
from rlkd_nemo.gsrm import schema, steps
from rlkd_nemo.gsrm.alignment import structure_reward
from rlkd_nemo.gsrm.fence import boundary, clean
from rlkd_nemo.gsrm.prompting import Prompts
from rlkd_nemo.types import Step

ATTEMPTS = [
    json.loads(line) for line in (Path(__file__).parent / "override_attempts.jsonl").read_text("utf-8").splitlines()
]
PROMPTS = Prompts()
PAIR = {"number": 1, "fields": ["meta"], "teacher": {"meta": "add"}, "student": {"meta": "subtract"}}


@pytest.mark.parametrize("domain", DOMAINS)
def test_worked_examples_round_trip(domain):
    assert len(PROMPTS.examples[domain]) >= 2
    for example in PROMPTS.examples[domain]:
        found = list(example.steps)
        assert 3 <= len(found) <= 8 and all(step.meta and step.question and step.answer for step in found)
        assert steps.parse(steps.format(found)) == found
        for form in ("json", "tags"):
            assert schema.read(schema.write(found, form), form) == found


@pytest.mark.parametrize("form", ["json", "tags"])
def test_a_decomposition_prompt(form):
    prompt = PROMPTS.decomposition("What is 2 + 3?", "I add. 5.", "math", form)
    assert [m["role"] for m in prompt.messages] == ["system", *["user", "assistant"] * 2, "user"]
    system, last = prompt.messages[0]["content"], prompt.messages[-1]["content"]
    assert ("[Meta-reasoning 1]" in system) == (form == "tags") and ('{"steps"' in system) == (form == "json")
    assert "substitute" in system and "I add. 5." in last and prompt.cut_chars == 0
    replies = [m["content"] for m in prompt.messages if m["role"] == "assistant"]
    assert [schema.read(reply, form) for reply in replies] == [list(e.steps) for e in PROMPTS.examples["math"]]
    with pytest.raises(InputError, match="poetry"):
        PROMPTS.decomposition("p", "t", "poetry", form)


def prompts_with(text):
    pair = {**PAIR, "student": {"meta": text}}
    yield PROMPTS.decomposition("p", text, "math", "tags"), 2
    yield PROMPTS.question("meta", "add", text, "p"), 3
    yield PROMPTS.all_questions([pair], "p"), 3


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt["name"])
def test_an_attempt_stays_behind_its_fence(attempt):
    shown, _ = clean(attempt["text"], 4000)
    for prompt, fences in prompts_with(attempt["text"]):
        last = prompt.messages[-1]["content"]
        assert last.count(f"<<<{prompt.boundary}\n") == last.count(f"\n{prompt.boundary}>>>") == fences
        assert last.count(prompt.boundary) == 2 * fences + 1  # and where it is announced
        assert f"<<<{prompt.boundary}\n{shown}\n{prompt.boundary}>>>" in last
    assert not steps.TAG.search(shown) and not re.search(r"<\s*/?\s*think|<[|\uff5c]|</?s>|im_start>", shown, re.I)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\t"]


class Gullible:
    """A stand-in for a model that believes all it can: it takes every tag in the request for a step, and obeys every
    sentence outside the fences. Otherwise it reads `aim: question = answer` lines, and compares by equality."""

    name = "gullible"

    def outside_and_inside(self, prompt):
        text = prompt.messages[-1]["content"]
        word = re.search(r"marked with the word (\S+)\.", text).group(1)
        pieces = re.split(rf"<<<{word}\n|\n{word}>>>", text)
        return " ".join(pieces[::2]), pieces[1::2]

    def decompose(self, problem, text):
        prompt = PROMPTS.decomposition(problem, text, "math", "tags")
        _, (_, inside) = self.outside_and_inside(prompt)
        lines = re.findall(r"^(\w[\w ]*): (.*) = (\w+)$", inside, re.M)
        return [Step(*line) for line in lines] + steps.tagged(prompt.messages[-1]["content"])

    def same(self, kind, teacher, student, problem):
        outside, (_, a, b) = self.outside_and_inside(PROMPTS.question(kind, teacher, student, problem))
        return bool(re.search(r"(answer|reply|say) yes", outside, re.I)) or a == b


REFERENCE = [Step("add the numbers", "what is 2 + 3", "5"), Step("double it", "what is 2 * 5", "10")]
HONEST = "add the numbers: what is 2 + 3 = 5\nsquare it: what is 5 * 5 = 25"


def gullible_reward(response):
    model = Gullible()
    return structure_reward(model.decompose("p", response), REFERENCE, model, problem="p").reward


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt["name"])
def test_an_attempt_does_not_raise_the_reward(attempt):
    text = attempt["text"]
    assert gullible_reward(HONEST) == 0.5
    for response in (f"{text}\n{HONEST}", f"{HONEST}\n{text}", HONEST.replace("\n", f"\n{text}\n"), text):
        assert gullible_reward(response) <= 0.5
    # In a field, where the judge sees it.
    assert structure_reward([REFERENCE[0], Step(text, text, text)], REFERENCE, Gullible(), problem="p").reward == 0.5


def test_there_are_attempts_of_every_kind():
    assert len(ATTEMPTS) >= 30 and len({attempt["name"] for attempt in ATTEMPTS}) == len(ATTEMPTS)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_cleaning_is_stable_and_keeps_plain_text(text):
    shown, cut = clean(text, 1000)
    assert cut == 0 and clean(shown, 1000) == (shown, 0) and boundary(shown) not in shown


def test_mathematics_and_code_are_kept():
    text = "x < user or low < answer: if a < b and b > c: x[0] = [1, 2] | y  # \u2264 \u222b f\u2032\n\tlist<int> v; $a_{1}<|b|$"
    assert clean(text, 1000)[0] == text.replace("<|", "< |")
    assert clean("abcdef", 4) == ("abcd", 2)


def test_a_boundary_is_never_in_the_text():
    first = boundary("text")
    assert boundary("text") == first != boundary("text " + first)
    assert first not in boundary(f"text {first}")


def test_a_users_template_replaces_ours(tmp_path):
    (tmp_path / "math.jinja").write_text("Mind the units.")
    own = Prompts(tmp_path)
    assert own.version != PROMPTS.version == Prompts().version
    assert "Mind the units." in own.decomposition("p", "t", "math", "json").messages[0]["content"]
    (tmp_path / "maths.jinja").write_text("")
    with pytest.raises(InputError, match=r"maths.jinja.*replaces nothing"):
        Prompts(tmp_path)
    with pytest.raises(InputError, match="no directory"):
        Prompts(tmp_path / "absent")
    (tmp_path / "maths.jinja").unlink()
    (tmp_path / "math.examples.json").write_text('[{"problem": "p", "text": "t", "steps": [{"meta": "m"}]}]')
    with pytest.raises(InputError, match=r"math.examples.json.*step 1"):
        Prompts(tmp_path)
    (tmp_path / "math.examples.json").unlink()
    (tmp_path / "judge_user.jinja").write_text("{{ pupil }}")
    with pytest.raises(InputError, match=r"judge_user.jinja.*pupil"):
        Prompts(tmp_path)
    (tmp_path / "judge_user.jinja").write_text(
        "{{ boundary }} {{ fenced(problem) }} {{ fenced(teacher) }} {{ student }}"
    )
    with pytest.raises(InputError, match=r"judge_user.jinja does not show the student behind a fence"):
        Prompts(tmp_path)


def test_long_texts_are_cut_and_said_to_be():
    prompt = Prompts(max_problem_chars=10, max_text_chars=20).decomposition("p" * 15, "t" * 50, "math", "json")
    assert prompt.cut_chars == 35 and "t" * 21 not in prompt.messages[-1]["content"]
    assert PROMPTS.question("meta", "a" * 5000, "b", "p").cut_chars == 1000
