"""How a task writes steps, had without the task."""

import pytest

from rlkd_nemo import tasks
from rlkd_nemo.config.schema import TASKS, ExpressionsTask, MathTask, PromptsTask


def test_it_is_the_tasks_own(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"problem": "p", "answer": "1", "teacher_path": "t"}\n')
    settings = [ExpressionsTask(), ExpressionsTask(style="prose"), PromptsTask(path=str(rows))]
    settings.append(TASKS["knights_and_knaves"]())
    assert {type(each) for each in settings} | {MathTask} == set(TASKS.values())  # mathematics is read as prompts are
    assert [tasks.notation(each) for each in settings] == [tasks.build(each).notation() for each in settings]


@pytest.mark.parametrize("settings", [PromptsTask(path="no/such/file"), MathTask(path="no/such/file")])
def test_no_problem_is_read(settings):
    assert tasks.notation(settings) is None


def test_a_task_that_exports_none_is_asked_itself(monkeypatch):
    monkeypatch.delattr("rlkd_nemo.tasks.expressions.notation")
    assert tasks.notation(ExpressionsTask()).name == "expressions-1"
