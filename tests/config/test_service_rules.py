"""Rules between the settings of the GSRM's server and of the trainer that asks it."""

import pytest

from rlkd_nemo.config.load import load
from rlkd_nemo.config.rules import check


@pytest.mark.parametrize(
    ("overrides", "key", "told"),
    [
        ("gsrm.judge=llm gsrm.llm.judge.urls=[http://h] gsrm.llm.judge.model=j", "gsrm.judge=llm", "scorer=service"),
        ("gsrm.server.port=70000", "gsrm.server.port=70000", "65535"),
        ("gsrm.server.items_per_request=9999", "items_per_request=9999", "queue_items"),
        ("gsrm.scorer=service gsrm.service.urls=[]", "gsrm.service.urls=[]", "http://host:8700"),
        ("gsrm.scorer=service gsrm.service.urls=[h:1]", "gsrm.service.urls has 'h:1'", "http://"),
        ("gsrm.scorer=service gsrm.service.urls=[http://h,http://h]", "gsrm.service.urls", "twice"),
        ("gsrm.scorer=remote", "gsrm.scorer='remote'", "embedded, service"),
        ("gsrm.service.attempts=0", "gsrm.service.attempts=0", ">= 1"),
    ],
)
def test_a_broken_rule_is_one_sentence(overrides, key, told):
    sentences = check(load("rlkd_demo", overrides.split()))
    assert len(sentences) == 1 and key in sentences[0] and told in sentences[0]


def test_a_service_of_rules_and_of_models_is_allowed():
    assert check(load("rlkd_demo", ["gsrm.scorer=service"])) == []
