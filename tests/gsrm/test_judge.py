import pytest

from rlkd_nemo.errors import ConfigError
from rlkd_nemo.gsrm import judge


def test_registry():
    for name in ("exact", "normalised"):
        assert judge.build(name).name == name
    with pytest.raises(ConfigError, match="exact, normalised"):
        judge.build("llm")


def test_exact():
    same = judge.build("exact").same
    assert same("answer", "1", "1", "") and not same("answer", "1", "1.0", "") and not same("meta", "A", "a", "")


def test_normalised():
    same = judge.build("normalised").same
    assert same("meta", "Reduce the left side.-", "reduce  the left side", "")
    assert same("answer", "0.5", "1/2", "")
    assert not same("question", "4/2", "2/1", "")  # equal numbers, other questions
    assert same("question", "2 * 3?", "2*3", "") and not same("question", "2*3", "3*2", "")
