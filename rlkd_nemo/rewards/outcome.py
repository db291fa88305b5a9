"""Is the final answer right?"""

from __future__ import annotations

from rlkd_nemo.interfaces import Task
from rlkd_nemo.types import Component, Failure, Rollout


def outcome(task: Task, rollout: Rollout) -> Component:
    """1 if the task verifies the response, else 0; 0 and counted for a response that was cut off.

    Source: R_acc of arXiv:2505.16142. A task that fails to verify is a fault of the task and is raised.
    """
    if rollout.truncated:
        return Component(0.0, Failure.TRUNCATED)
    return Component(float(task.verify(rollout.problem, rollout.text)))
