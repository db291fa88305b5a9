r"""Public layouts of mathematics data, one function each: a row to question, gold answer and worked solutions.

| layout | keys | published as |
|---|---|---|
| gsm8k | question, answer ending in `#### 72` | openai/gsm8k |
| math | problem, solution with \boxed{...}, (level, type) | hendrycks MATH |
| answer | problem, answer, (solution) | DeepScaleR, MATH-500, NuminaMath, AIME |
| openr1 | problem, answer, generations, (correctness_math_verify, is_reasoning_complete) | open-r1/OpenR1-Math-220k |
| verl | prompt as messages or text, reward_model.ground_truth | Skywork-OR1, DAPO-Math |
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from rlkd_nemo.tasks.answers import final_answer

Row = Mapping[str, Any]
# Question, gold answer, solutions (reasoning and what follows </think>), best first.
Read = tuple[str, str, list[str]]


def gsm8k(row: Row) -> Read:
    """The answer stands after `####`; `<<48/2=24>>` notes of the calculator are left in, as published."""
    question, worked = _text(row, "question"), _text(row, "answer")
    solution, mark, answer = worked.rpartition("####")
    if not mark or not answer.strip():
        raise ValueError("'answer' has no `#### result` at its end")
    return question, answer.strip().replace(",", ""), [_worked(solution, answer.strip())]


def math(row: Row) -> Read:
    r"""The answer stands in the solution's last \boxed{...}."""
    solution = _text(row, "solution")
    answer = final_answer(solution)
    if answer is None:
        raise ValueError(r"'solution' has no \boxed{...}")
    return _text(row, "problem"), answer, [_worked(solution, answer)]


def answer(row: Row) -> Read:
    """The answer stands by itself; a solution, where there is one, is a reference."""
    gold = _text(row, "answer")
    solution = row.get("solution")
    worked = [_worked(solution, gold)] if isinstance(solution, str) and solution.strip() else []
    return _text(row, "problem"), gold, worked


def openr1(row: Row) -> Read:
    """Generations of a reasoning model; those verified as right come first, unfinished and refuted ones not at all.

    Source: make_training_dataset_RLKD.py of arXiv:2505.16142's release takes the first verified one.
    """
    generations = row.get("generations")
    if not isinstance(generations, list) or not all(isinstance(one, str) for one in generations):
        raise ValueError("'generations' is no list of texts")
    right, whole = (_flags(row, key, len(generations)) for key in ("correctness_math_verify", "is_reasoning_complete"))
    kept = [one for one, is_right, is_whole in zip(generations, right, whole) if is_right and is_whole and one.strip()]
    return _text(row, "problem"), _text(row, "answer"), [_thought(one) for one in kept]


def verl(row: Row) -> Read:
    """The gold answer may be a JSON list in text, of which the first counts (Skywork-OR1)."""
    prompt, given = row.get("prompt"), row.get("reward_model")
    if isinstance(prompt, list):
        said = [one.get("content") for one in prompt if isinstance(one, dict) and one.get("role") == "user"]
        prompt = said[-1] if said else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("'prompt' holds no user's message")
    gold = given.get("ground_truth") if isinstance(given, dict) else None
    if isinstance(gold, str) and gold.startswith("["):
        with contextlib.suppress(ValueError):  # an interval such as [0, 1) is no list
            gold = json.loads(gold)
    if isinstance(gold, list) and gold and isinstance(gold[0], (str, int, float)):
        gold = gold[0]
    if not isinstance(gold, (str, int, float)) or isinstance(gold, bool) or not str(gold).strip():
        raise ValueError("'reward_model' has no ground_truth")
    return prompt, str(gold).strip(), []


LAYOUTS: dict[str, Callable[[Row], Read]] = {
    "gsm8k": gsm8k, "math": math, "answer": answer, "openr1": openr1, "verl": verl,
}  # fmt: skip


def recognise(row: Row) -> str | None:
    """The layout that has a row's keys; None when none has."""
    if "generations" in row and "problem" in row:
        return "openr1"
    if "reward_model" in row and "prompt" in row:
        return "verl"
    if "problem" in row:
        return "answer" if "answer" in row else "math" if "solution" in row else None
    return "gsm8k" if "question" in row and "answer" in row else None


def _text(row: Row, key: str) -> str:
    value = row.get(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key!r} is {'missing' if value is None else json.dumps(value)[:40]}; wanted text")
    return value.strip()


def _flags(row: Row, key: str, number: int) -> list[bool]:
    flags = row.get(key)
    if flags is None:
        return [True] * number
    if not isinstance(flags, list) or len(flags) != number:
        raise ValueError(f"{key!r} has not one entry for each of {number} generations")
    return [bool(flag) for flag in flags]


def _worked(solution: str, result: str) -> str:
    return f"{solution.strip()}\n</think>\n<answer>\n\\boxed{{{result}}}\n</answer>"


def _thought(generation: str) -> str:
    """What follows `<think>\n`, the final words between answer tags."""
    thinking, closing, rest = generation.partition("</think>")
    thinking = thinking.strip().removeprefix("<think>").strip()
    return f"{thinking}\n</think>\n<answer>\n{rest.strip()}\n</answer>" if closing else thinking
