"""Rules between the settings of language models that decompose and judge."""

import pytest

from rlkd_nemo.config.gsrm_rules import not_lazy
from rlkd_nemo.config.load import load
from rlkd_nemo.config.rules import check

DECOMPOSER = "gsrm.decomposer=llm gsrm.llm.decomposer.urls=[http://h:1/v1] gsrm.llm.decomposer.model=d "
JUDGE = "gsrm.judge=llm gsrm.llm.judge.urls=[http://h:2/v1] gsrm.llm.judge.model=j "


def found(overrides):
    return check(load("rlkd_demo", overrides.split()))


@pytest.mark.parametrize(
    ("overrides", "key", "told"),
    [
        ("gsrm.decomposer=llm gsrm.llm.decomposer.model=d", "gsrm.llm.decomposer.urls=[]", "at least one"),
        ("gsrm.judge=llm gsrm.llm.judge.urls=[http://h]", "gsrm.llm.judge.model", "/models"),
        (JUDGE + "gsrm.llm.judge.urls=[h:2]", "gsrm.llm.judge.urls has 'h:2'", "http://"),
        (JUDGE + "gsrm.llm.judge.urls=[http://h,http://h]", "gsrm.llm.judge.urls", "twice"),
        ("gsrm.llm.judging=per_response", "gsrm.judge=normalised", "gsrm.judge=llm"),
        (JUDGE + "gsrm.llm.judging=per_response gsrm.alignment=monotone", "judging=per_response", "judging=per_pair"),
        ("gsrm.label.mixed=3", "gsrm.label.mixed=3", "gsrm.label.verdicts=none"),
        ("gsrm.label.text_pairs=2", "gsrm.label.text_pairs=2", "gsrm.label.verdicts=none"),
        ("gsrm.llm.lazy=on", "gsrm.llm.lazy=on", "gsrm.decomposer=text"),
        (DECOMPOSER + "gsrm.llm.lazy=on gsrm.norm=max", "gsrm.llm.lazy=on", "gsrm.norm=max"),
        (DECOMPOSER + "gsrm.llm.lazy=on gsrm.alignment=monotone", "gsrm.llm.lazy=on", "gsrm.alignment=monotone"),
        (DECOMPOSER + JUDGE + "gsrm.llm.lazy=on gsrm.llm.judging=per_response", "gsrm.llm.lazy=on", "per_response"),
    ],
)
def test_a_broken_rule_is_one_sentence(overrides, key, told):
    assert len([sentence for sentence in found(overrides) if key in sentence and told in sentence]) == 1


@pytest.mark.parametrize("more", ["", "gsrm.llm.lazy=on", "gsrm.llm.judging=per_response", "gsrm.norm=max"])
def test_what_is_allowed(more):
    assert found("gsrm.scorer=service " + DECOMPOSER + JUDGE + more) == []


def test_where_lazy_scoring_serves():
    assert not_lazy(load("rlkd_demo", DECOMPOSER.split()).gsrm) is None
    assert not_lazy(load("rlkd_demo", [*DECOMPOSER.split(), "gsrm.norm=none"]).gsrm) is None
    assert "more than one" in not_lazy(load("rlkd_demo", [*DECOMPOSER.split(), "gsrm.reference_mode=best"]).gsrm)
