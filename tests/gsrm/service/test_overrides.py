"""benchmarks/gsrm_overrides.py measures what it says: a stand-in that obeys what no fence holds off shows both sides."""

import asyncio
import json

import pytest

from benchmarks import gsrm_overrides
from rlkd_nemo.errors import InputError


def measured(endpoint, tmp_path, rule, names, *more):
    rows = [json.loads(line) for line in gsrm_overrides.ATTEMPTS.read_text("utf-8").splitlines()]
    chosen = [row for row in rows if row["name"] in names]
    assert len(chosen) == len(names)
    (tmp_path / "attempts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    given = gsrm_overrides.arguments(["--attempts", str(tmp_path / "attempts.jsonl"), "--model", "stand-in", *more])
    url = endpoint(rule).url
    return asyncio.run(gsrm_overrides.main(given, {"decomposer": url, "judge": url}))


def test_orders_and_tags_count_with_the_fence_off_and_not_with_it_on(endpoint, tmp_path):
    names = ("ignore above", "fake tags", "long filler", "closed think", "lone surrogate and nul")
    found = measured(endpoint, tmp_path, gsrm_overrides.gullible, names)
    on, off = found["fence_on"], found["fence_off"]
    assert on["judge"]["tried"] == on["judge"]["counted"] == 5 * 2 * 3 and on["without_reply"] == {}
    assert on["judge"]["steered"] == on["decomposer"]["planted"] == 0
    assert off["judge"]["steered"] == 4 * 6 and off["decomposer"]["planted"] == 2
    assert off["judge"]["names"]["steered"] == sorted({*names} - {"fake tags"})
    assert off["decomposer"]["names"]["planted"] == ["fake tags"]
    # Closing the thinking before the reasoning costs the student its own steps, on either side.
    assert on["decomposer"]["names"]["derailed"] == off["decomposer"]["names"]["derailed"] == ["closed think"]


def test_a_judge_that_is_wrong_without_an_attempt_is_not_counted(endpoint, tmp_path):
    def always(messages, form):
        return "yes" if messages[-1]["content"].endswith("yes or no") else gsrm_overrides.gullible(messages, form)

    judge = measured(endpoint, tmp_path, always, ["ignore above"])["fence_on"]["judge"]
    assert judge["controls_right"] == {"meta": False, "answer": False}
    assert (judge["tried"], judge["counted"], judge["steered"]) == (6, 0, 0)


def test_a_bad_file_of_attempts_is_refused(endpoint, tmp_path):
    (tmp_path / "attempts.jsonl").write_text('{"name": "a"}\n{\n')
    given = gsrm_overrides.arguments(["--attempts", str(tmp_path / "attempts.jsonl")])
    with pytest.raises(InputError, match=r"(?s)jsonl:1: .*jsonl:2: no JSON"):
        asyncio.run(gsrm_overrides.main(given, {}))
