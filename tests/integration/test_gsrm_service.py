"""Training on two ranks with the structure reward from a real server."""

from pathlib import Path

import pytest

from rlkd_nemo import tasks
from rlkd_nemo.config.schema import ExpressionsTask, Gsrm
from rlkd_nemo.gsrm.service.core import Result
from rlkd_nemo.gsrm.service.scoring import Scoring
from rlkd_nemo.types import Failure
from tests.gsrm.service.serving import running
from tests.integration.conftest import read_metrics
from tests.ranks import launch

pytestmark = pytest.mark.ranks
SCRIPT = Path(__file__).with_name("gsrm_service_ranks.py")
ROLLOUTS = 16  # a step: 4 prompts, 4 of each


class FailsLater(Scoring):
    """Its judge goes down once so many items have been scored."""

    left = ROLLOUTS + 8

    async def score(self, item, *, deadline_s):
        self.left -= 1
        if self.left < 0:
            return Result(item.id, "failed", None, failure=Failure.JUDGE_FAILED, error="the breaker is open")
        return await super().score(item, deadline_s=deadline_s)


@pytest.fixture(scope="module")
def said(demo, tmp_path_factory):
    directory = tmp_path_factory.mktemp("service")
    notation = tasks.build(ExpressionsTask()).notation()
    rules = {"reference_mode": "first", "alignment": "prefix", "norm": "teacher"}
    good, failing = (kind(Gsrm(), directory / kind.__name__, notation) for kind in (Scoring, FailsLater))
    with running(good, directory / "1", rules=rules) as one, running(failing, directory / "2", rules=rules) as other:
        out = launch(SCRIPT, 2, directory, demo / "student/checkpoints/step-000010", one.url, other.url)
        asked = one.app.metrics.text().decode()
    return directory, dict(line.split(": ", 1) for line in out.splitlines() if ": " in line), asked


def test_a_service_gives_the_run_of_the_embedded_scorer_to_the_last_digit(said):
    assert said[1]["embedded"] == said[1]["service"] == "finished"
    mine, theirs = (read_metrics(said[0] / name) for name in ("service", "embedded"))
    assert mine == theirs and len(mine) == 3
    # 16 rollouts decoded in batches of 4: each was sent on while the next was decoded, and once more to be waited for.
    assert 'gsrm_items_total{failure="",status="ok"}' in said[2] or 'failure="unparseable_student"' in said[2]
    served = [
        float(line.split()[-1])
        for line in said[2].splitlines()
        if line.startswith(("gsrm_items_cached_total ", "gsrm_items_coalesced_total "))
    ]
    assert sum(served) >= 3 * ROLLOUTS - 16


def test_a_judge_that_goes_down_stops_the_run_with_the_last_good_state(said):
    told = said[1]["failing"]
    assert told.startswith("FailureBudgetError") and "judge_failed" in told and "the breaker is open" in told
    steps = [line["step"] for line in read_metrics(said[0] / "failing")]
    kept = sorted(path.name for path in (said[0] / "failing/checkpoints").glob("step-*"))
    assert kept == [f"step-{steps[-1] if steps else 0:06d}"]


def test_a_dead_server_is_one_clear_error_before_anything_starts(said):
    assert said[1]["dead"].startswith("ServiceError: no GSRM server is ready after gsrm.service.startup_s=0.5 s")
    assert not (said[0] / "dead/metrics.jsonl").exists()
