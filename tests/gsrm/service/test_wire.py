"""Results to bytes and back."""

import json

import pytest

from rlkd_nemo.gsrm.service.core import Result
from rlkd_nemo.gsrm.service.wire import decode, encode, with_id
from rlkd_nemo.types import Failure, Step

FULL = Result(
    "a", "ok", 0.25, 1, (Step("m", "q", "1"), Step("n")), (Step("m", None, "2"),), ({"student": 0, "meta": True},),
    detail={"reply": '{"steps": []}', "weights": [0.5]},
)  # fmt: skip


@pytest.mark.parametrize(
    "result",
    [FULL, Result("b", "failed", None, failure=Failure.TIMEOUT, error='late "x" \u2028'), Result("c", "ok", 0.0)],
)
def test_a_result_comes_back_as_it_was(result):
    line = with_id(result.id, encode(result))
    assert decode(json.loads(line)) == result and b"\n" not in line
    assert json.loads(line) == json.loads(json.dumps(result.as_dict()))  # the same fields as the core's own form


@pytest.mark.parametrize(
    ("change", "error"),
    [({"failure": "no_such"}, ValueError), ({"status": "failed"}, ValueError), ({"reward": None}, ValueError)],
)
def test_what_contradicts_itself_is_no_result(change, error):
    plain = {**json.loads(with_id("a", encode(FULL))), **change}
    with pytest.raises(error):
        decode(plain)


def test_not_a_number_is_no_reward():
    with pytest.raises(ValueError, match="JSON compliant"):
        encode(Result("a", "ok", float("nan")))
