import pytest

from rlkd_nemo import tasks
from rlkd_nemo.config.schema import ExpressionsTask, Gsrm, Reward
from rlkd_nemo.rewards.blend import EmbeddedScorer
from rlkd_nemo.types import Problem, Rollout

# (1a+2)b-(3c*4) modulo 5: a 1+2=3, c 3*4=12=2, b 3-2=1
PATH = "a:1+2=3;c:3*4=2;b:3-2=1;</think><answer>1</answer>"
RIGHT_FIRST = "c:3*4=2;a:1+2=3;b:3-2=1;</think><answer>1</answer>"


@pytest.fixture
def task():
    return tasks.build(ExpressionsTask())


@pytest.fixture
def path():
    return PATH


@pytest.fixture
def rollout():
    """A response to the problem above."""

    def make(text=PATH, *, paths=(PATH,), truncated=False, prompt="(1a+2)b-(3c*4)=<think>"):
        problem = Problem("p", prompt, "1", tuple(paths))
        return Rollout(problem, 0, 0, [], [], [], text, truncated, 0, 1.0)

    return make


@pytest.fixture
def scorer(task, tmp_path):
    """An embedded scorer; `weights` as of Reward, the rest as of Gsrm."""

    def make(weights=None, decomposer=None, judge=None, **gsrm):
        return EmbeddedScorer(
            task, Reward(**(weights or {})), Gsrm(**gsrm), tmp_path / "references", decomposer=decomposer, judge=judge
        )

    return make
