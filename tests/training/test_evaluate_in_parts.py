"""An evaluation that is stopped and goes on gives what one at a stroke gives, and never mixes two."""

import json

import pytest

from rlkd_nemo.errors import ConfigError, FailureBudgetError, InputError, Preempted
from rlkd_nemo.training.evaluate import evaluate
from rlkd_nemo.training.evaluate_in_parts import KeptSamples, evaluate_in_parts
from rlkd_nemo.types import Component, Failure, Problem, Rollout, Score

PROBLEMS = [Problem(f"p{i}", "", "") for i in range(7)]
HOW = {"samples": 2, "temperature": 1.0, "max_new_tokens": 8, "seed": 1}


class Sampler:
    """Responses whose length and log-probs hang on problem and sample alone; `asked` tells what it was asked for."""

    def __init__(self):
        self.asked = []

    def generate(self, problems, group_size, *, stream, temperature, max_new_tokens):
        self.asked.append([problem.id for problem in problems])
        return [
            self.one(problem, group, sample, int(problem.id[1:]))
            for group, problem in enumerate(problems)
            for sample in range(group_size)
        ]

    def one(self, problem, group, sample, at):
        tokens = 1 + at % 3
        log_probs = [-0.1 * (at + sample + 1)] * tokens
        return Rollout(problem, group, sample, [1], [2] * tokens, log_probs, "", at == 3, 0, 1.0)


class Scorer:
    """Right where problem + sample is even; structure for all but one; no score at all for `failing`."""

    failing = ()

    def score(self, rollouts):
        return [self.one(rollout.problem.id, int(rollout.problem.id[1:]), rollout.sample) for rollout in rollouts]

    def one(self, name, at, sample):
        if name in self.failing:
            return Score({"outcome": Component(None, Failure.JUDGE_FAILED)}, None)
        structure = Component(0.0, Failure.UNPARSEABLE_STUDENT) if at == 5 else Component(at / 7)
        return Score({"outcome": Component(float((at + sample) % 2 == 0)), "structure": structure}, 1.0)


def run(tmp_path, sampler, scorer=None, *, about=None, stop=lambda: False, part=3, told=None):
    kept = KeptSamples(tmp_path / "kept.jsonl", about or {"weights": "a", "temperature": 1.0})
    on_part = (lambda done: None) if told is None else told.append
    return evaluate_in_parts(
        sampler, scorer or Scorer(), PROBLEMS, kept=kept, part=part, stop=stop, on_part=on_part, **HOW
    )


def stop_at(number):
    """True from the n-th question on."""
    questions = iter(range(100))
    return lambda: next(questions) + 1 >= number


def test_stopped_twice_it_gives_what_one_stroke_gives(tmp_path):
    whole = evaluate(Sampler(), Scorer(), PROBLEMS, **HOW)
    sampler, told = Sampler(), []
    with pytest.raises(Preempted, match="3 of 7 problems evaluated"):
        run(tmp_path, sampler, stop=stop_at(2), told=told)
    with pytest.raises(Preempted, match="6 of 7"):
        run(tmp_path, sampler, stop=stop_at(2), told=told)
    assert run(tmp_path, sampler, told=told) == whole
    # No problem is sampled twice, and progress counts what was there.
    assert sampler.asked == [["p0", "p1", "p2"], ["p3", "p4", "p5"], ["p6"]]
    assert told == [0, 3, 3, 6, 6, 7]


def test_a_stop_before_the_first_part_keeps_nothing_and_samples_nothing(tmp_path):
    sampler = Sampler()
    with pytest.raises(Preempted, match="0 of 7"):
        run(tmp_path, sampler, stop=stop_at(1))
    assert sampler.asked == [] and not (tmp_path / "kept.jsonl").exists()


def test_nobody_is_asked_to_stop_after_the_last_part(tmp_path):
    assert run(tmp_path, Sampler(), stop=stop_at(4)) == evaluate(Sampler(), Scorer(), PROBLEMS, **HOW)


def test_a_part_with_holes_is_not_kept(tmp_path):
    broken = Scorer()
    broken.failing = ("p4",)
    with pytest.raises(FailureBudgetError, match="2 of 6 evaluation samples could not be scored"):
        run(tmp_path, Sampler(), broken)
    sampler = Sampler()
    assert run(tmp_path, sampler) == evaluate(Sampler(), Scorer(), PROBLEMS, **HOW)
    assert sampler.asked[0] == ["p3", "p4", "p5"]


def test_what_is_kept_of_something_else_is_refused_with_the_difference(tmp_path):
    with pytest.raises(Preempted):
        run(tmp_path, Sampler(), stop=stop_at(2))
    with pytest.raises(ConfigError, match=r"something else \(weights: a, now b\).*exp_manager.resume_if_exists=false"):
        run(tmp_path, Sampler(), about={"weights": "b", "temperature": 1.0})


@pytest.mark.parametrize("text", ["", "[]\n", "{}\n{}\n", "half a li"])
def test_a_file_that_is_none_of_ours_is_refused(tmp_path, text):
    (tmp_path / "kept.jsonl").write_text(text)
    with pytest.raises(InputError, match="remove it to evaluate anew"):
        run(tmp_path, Sampler(), about={"a": 1} if text.startswith("{}") else None)


def test_settings_with_other_line_separators_are_found_again(tmp_path):
    about = {"task.template": "a\u2028b\x85c"}
    with pytest.raises(Preempted):
        run(tmp_path, Sampler(), about=about, stop=stop_at(2))
    assert run(tmp_path, Sampler(), about=about) == evaluate(Sampler(), Scorer(), PROBLEMS, **HOW)


def test_numbers_survive_the_file_to_the_last_digit(tmp_path):
    with pytest.raises(Preempted):
        run(tmp_path, Sampler(), stop=stop_at(3))
    lines = (tmp_path / "kept.jsonl").read_text().splitlines()
    assert json.loads(lines[4])["log_prob"] == sum([-0.1 * 3] * 2)  # p1, second sample: two tokens
