import pytest

from rlkd_nemo import tasks
from rlkd_nemo.config.schema import TASKS, ExpressionsTask
from rlkd_nemo.errors import ConfigError


def test_every_registered_task_has_its_file():
    assert tasks.names() == sorted(TASKS)


def test_settings_find_their_task():
    assert type(tasks.build(ExpressionsTask())).__module__ == "rlkd_nemo.tasks.expressions"


def test_a_wrong_name_lists_the_choices():
    with pytest.raises(ConfigError, match="expressions, knights_and_knaves, math, prompts; did you mean expressions"):
        tasks.load("expresions")
    # a file of the folder that is no task
    with pytest.raises(ConfigError, match="wanted one of"):
        tasks.load("answers")


@pytest.mark.parametrize("settings", [None, {"name": "expressions"}])
def test_settings_of_no_task(settings):
    with pytest.raises(ConfigError, match="expressions, knights_and_knaves, math, prompts"):
        tasks.build(settings)
