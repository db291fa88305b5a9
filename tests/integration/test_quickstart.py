"""The quickstart leaves what it promises."""

import json

import pytest

from tests.integration.conftest import SMALL, read_metrics, run_example

pytestmark = pytest.mark.ranks


def test_summary_report_and_audit(demo):
    summary = json.loads((demo / "summary.json").read_text())
    for name in (
        "student_accuracy_before", "student_accuracy_after", "teacher_accuracy", "structure_reward_before",
        "structure_reward_after", "rollouts", "rl_steps", "seconds_total", "seconds_rl", "tokens_per_second_rollout",
        "tensor_model_parallel_size", "data_parallel_size", "objective", "seed",
    ):  # fmt: skip
        assert summary[name] is not None, name
    assert summary["rollouts"] == 2 * 4 * 4
    assert (summary["tensor_model_parallel_size"], summary["data_parallel_size"]) == (2, 1)
    assert summary["objective"] == "trrd"
    assert [line["step"] for line in read_metrics(demo)] == [0, 1, 2]
    assert (demo / "report.html").stat().st_size < 2_000_000
    record = json.loads((demo / "rollouts" / "step-00001.jsonl").read_text().splitlines()[0])
    assert set(record["components"]) == {"outcome", "structure", "format", "tag"}
    assert record["teacher_steps"]
    assert (demo / "config.yaml").exists()


def test_an_interrupted_quickstart_does_only_what_is_left(demo):
    ended = run_example(
        "quickstart", *SMALL, f"exp_manager.exp_dir={demo}", "demo.base.steps=60", "demo.teacher.steps=20",
        "demo.student.steps=10", "demo.min_teacher_accuracy=0", "demo.test_problems=8", "demo.test_samples=2",
        "trainer.rlkd.max_steps=2",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "teacher is there already" in ended.err


def test_a_teacher_that_never_gets_good_is_refused(demo, tmp_path):
    (tmp_path / "run").mkdir()
    ended = run_example(
        "quickstart", *SMALL, f"exp_manager.exp_dir={tmp_path}/run", "demo.base.steps=3", "demo.teacher.steps=3",
        "demo.max_teacher_retrains=1", "demo.test_problems=4", "demo.test_samples=1",
    )  # fmt: skip
    assert ended.code == 2
    assert "no teacher reached demo.min_teacher_accuracy=0.9" in ended.err
    assert "[0, 1000]" in ended.err  # the first seed and the derived one
