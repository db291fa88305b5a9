import pytest

from rlkd_nemo import tasks
from rlkd_nemo.config.schema import ExpressionsTask
from rlkd_nemo.errors import ConfigError
from rlkd_nemo.gsrm import decompose
from rlkd_nemo.types import Step


def test_the_tasks_own_notation_comes_first():
    task = tasks.build(ExpressionsTask())
    found = decompose.build("text", task.notation())
    assert found.decompose("", "c:2*3=1;</think><answer>1</answer>") == [Step("c", "2*3", "1")]
    assert found.decompose("", "[sub-think 1] a [Answer 1] 5") == [Step("a", None, "5")]
    assert found.decompose("", "nothing") == []


def test_tags_only():
    found = decompose.build("text", None)
    assert found.decompose("", "c:2*3=1;") == [] and found.decompose("", "[Meta-reasoning] a") == [Step("a")]


def test_the_version_tells_notations_apart():
    task = tasks.build(ExpressionsTask())
    assert decompose.build("text", None).version != decompose.build("text", task.notation()).version


def test_an_unknown_name():
    with pytest.raises(ConfigError, match="wanted one of text"):
        decompose.build("llm", None)
