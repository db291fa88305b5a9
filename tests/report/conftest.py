import pytest

from rlkd_nemo.types import Component, Failure, Problem, Rollout, Score, Step


@pytest.fixture
def rollout():
    """Builds a rollout with its score; `text` is what the student said, `detail` what the structure reward saw."""

    def build(text="a b", reward=10.0, *, sample=0, detail=None, failure=None, prompt="1 + 1"):
        problem = Problem("p0", prompt, "2")
        made = Rollout(problem, 0, sample, [1], [2, 3], [-0.5, -0.5], text, False, 0, 1.0)
        structure = Component(None, failure) if failure else Component(0.5, detail=detail or {})
        return made, Score({"outcome": Component(1.0), "structure": structure}, None if failure else reward)

    return build


@pytest.fixture
def parted():
    """Detail of a structure reward: the second of three steps is another one."""
    teacher = [Step("inner first", "3 - 1", "2"), Step("then multiply", "2 * 2", "4"), Step("answer")]
    student = [teacher[0], Step("guess", "?", "4")]
    return {"student_steps": student, "teacher_steps": teacher, "parts_at": 1}


@pytest.fixture
def system_failure():
    return Failure.JUDGE_FAILED
