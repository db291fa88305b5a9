"""Faults inside the loop: NaN in loss or gradient, a judge that is down for a whole group."""

from pathlib import Path

import pytest

from tests.integration.conftest import read_metrics
from tests.ranks import launch

pytestmark = pytest.mark.ranks
SCRIPT = Path(__file__).with_name("faults_ranks.py")


@pytest.fixture(scope="module")
def said(demo, tmp_path_factory):
    directory = tmp_path_factory.mktemp("faults")
    student, teacher = demo / "student/checkpoints/step-000010", demo / "teacher/checkpoints/step-000020"
    out = launch(SCRIPT, 2, directory, student, teacher)
    return directory, {line.split(":")[0]: line for line in out.splitlines() if ":" in line}


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nan_stops_names_the_micro_batch_and_keeps_the_last_good_checkpoint(said, what):
    line = said[1][what.upper()]
    assert f"non-finite {what} in micro-batch 1 of 4" in line
    assert "rows [" in line
    assert line.endswith("KEPT step-000001 WEIGHTS same")  # nothing was stepped after the good step


def test_a_group_failed_by_the_system_is_left_out(said):
    assert said[1]["ALLOWED"] == "ALLOWED: finished"
    for line in read_metrics(said[0] / "allowed"):
        assert line["reward/failed_fraction"] == 0.25
        assert line["reward/failures_judge_failed"] == 4
        assert line["reward/structure_count"] == 12
        assert line["rollout/unusable_groups"] == 1


def test_above_the_budget_the_run_stops(said):
    assert "4 of 16 rollouts have no reward (structure: judge_failed x 4)" in said[1]["REFUSED"]
    assert not read_metrics(said[0] / "refused")
