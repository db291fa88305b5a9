import json
import re

import pytest

from rlkd_nemo.errors import InputError
from rlkd_nemo.report.metrics import MetricsLog, read
from rlkd_nemo.report.page import alarms, fact, facts, measures, number, script_json, tables, write_report

SUMMARY = {
    "student_accuracy_before": 0.2,
    "student_accuracy_after": 0.7,
    "teacher_accuracy": 0.95,
    "student_accuracy_after_interval": (0.6, 0.8),
    "seconds_total": 125.0,
    "objective": "trrd",
}
# As many metrics as a real step of TRRD logs.
NAMES = [f"loss/quantity_{i}" for i in range(40)] + [f"time/stage_{i}_s" for i in range(10)] + [
    "reward/total", "reward/outcome", "reward/structure", "rollout/length_tokens", "rollout/tokens_per_s",
]  # fmt: skip


def log_steps(run_dir, steps, names=NAMES):
    with MetricsLog(run_dir) as metrics:
        for step in range(steps):
            metrics.log(step, {name: (step * 37 + i) % 101 / 7.0 for i, name in enumerate(names)})


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_two_thousand_steps_fit_into_two_megabytes(tmp_path):
    log_steps(tmp_path, 2000)
    path = write_report(tmp_path, "run", SUMMARY)
    assert path == tmp_path / "report.html" and 100_000 < path.stat().st_size < 2_000_000
    assert sum(len(plot["series"]) for plot in data_of(path.read_text())["plots"]) == len(NAMES)


def test_eight_long_runs_fit_as_well(tmp_path):
    runs = {f"run {i}": tmp_path / str(i) for i in range(8)}
    for run in runs.values():
        log_steps(run, 400)
    assert write_report(tmp_path, "runs", {}, runs=runs).stat().st_size < 2_000_000


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    log_steps(tmp_path, 2)
    page = write_report(tmp_path, "run", SUMMARY).read_text()
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|@import|url\((?!data:)""", page)
    assert "default-src 'none'" in page


def test_text_of_the_run_cannot_become_markup(tmp_path, rollout, parted):
    from rlkd_nemo.report.audit import RolloutAudit

    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    log_steps(tmp_path, 2, [f"loss/{evil}", "loss/total"])
    parted["student_steps"] = [{"meta": evil, "question": evil, "answer": evil}]
    RolloutAudit(tmp_path).write(1, *([part] for part in rollout(evil, detail=parted, prompt=evil)))
    (tmp_path / "config.yaml").write_text(evil)
    page = write_report(tmp_path, evil, {evil: evil, "table": {evil: {evil: evil}}}, runs={evil: tmp_path}).read_text()
    page += write_report(tmp_path, evil, {evil: evil}).read_text()
    assert page.count("alert(1)") >= 12  # all of it is shown ...
    assert "<img" not in page and "<script>alert" not in page  # ... and none of it is markup


def test_json_in_the_page_cannot_end_its_script():
    text = script_json({"</script>": "<!-- & \u2028"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"</script>": "<!-- & \u2028"}


def test_cards_measure_the_gap_to_the_teacher():
    (card,) = measures(SUMMARY)
    # 0.5 of the 0.75 between student and teacher.
    assert card["title"] == "Accuracy"
    assert (card["change"], card["closed"]) == (pytest.approx(0.5), pytest.approx(2 / 3))
    assert [row["interval"] for row in card["rows"]] == [None, (0.6, 0.8), None]
    assert measures({}) == []
    assert measures({"student_accuracy_after": None}) == []
    (alone,) = measures({"structure_reward_after": 4.0})
    assert alone["change"] is None and alone["closed"] is None and alone["rows"][0]["percent"] == 100.0


def test_everything_of_the_summary_is_somewhere():
    assert facts({**SUMMARY, "engine": {"ranks": 2}, "teacher_accuracy": None}) == [
        ("teacher accuracy", "none"),
        ("time total", "2m05s"),
        ("objective", "trrd"),
        ("engine ranks", "2"),
    ]
    rows = {
        "grpo": {"accuracy": 0.5, "accuracy_interval": [0.4, 0.6], "seed": 1},
        "trrd": {"accuracy": 0.75, "lost_interval": [0, 1]},
    }
    expected = {
        "head": ["accuracy", "seed", "lost interval"],
        "body": [("grpo", ["0.500 (0.400 to 0.600)", "1", ""]), ("trrd", ["0.750", "", "0 to 1"])],
    }
    assert tables(rows) == [{"title": "", **expected}] and facts(rows) == []
    assert tables({"seed_0": rows, "n": 1}) == [{"title": "seed 0", **expected}]
    assert facts({"seed_0": rows, "n": 1}) == [("n", "1")]


def test_numbers_and_facts():
    assert [number(value) for value in (None, 3, 0.0, 0.25, 12.345, 456.78, 12345.6, 0.00012345)] == [
        "none", "3", "0", "0.250", "12.35", "456.8", "12,346", "0.000123",
    ]  # fmt: skip
    assert [fact(True), fact(None), fact(float("nan")), fact([1, 2]), fact((0.1, 0.2), "x_interval")] == [
        "yes", "none", "not finite", "1, 2", "0.100 to 0.200",
    ]  # fmt: skip
    assert [fact(75.0, "seconds_rl"), fact(0.5, "sync_s"), fact(90.0, "tokens_per_s")] == ["1m15s", "0.500 s", "90.00"]


def test_a_run_without_metrics_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"b/metrics\.jsonl does not exist"):
        log_steps(tmp_path / "a", 1)
        write_report(tmp_path, "x", {}, runs={"a": tmp_path / "a", "b": tmp_path / "b"})
    assert not (tmp_path / "report.html").exists()


def test_a_run_without_a_step_has_a_report(tmp_path):
    log_steps(tmp_path, 0)
    assert "0 steps" in write_report(tmp_path, "empty", {}).read_text()


def test_alarms_stand_with_their_bounds_and_the_step_they_began_at(tmp_path):
    with MetricsLog(tmp_path) as metrics:
        for step, same in enumerate((1.0, 0.5, 0.6, 1.0)):
            metrics.log(step, {"audit/canary_same": same, "audit/canary_other": 0.14 * step + 0.1})
    same, other = alarms({"": read(tmp_path)})
    assert (same["first"], same["times"], same["now"], same["bounds"]) == (1, 2, False, "at least 0.75")
    assert (other["first"], other["times"], other["now"], other["value"]) == (3, 1, True, 0.52)
    assert same["name"] == "References followed by themselves"
    page = write_report(tmp_path, "run", SUMMARY).read_text()
    assert "Audit of the reward" in page and "at least 0.75" in page and "the judge says yes to anything" in page
    with MetricsLog(tmp_path / "plain") as metrics:
        metrics.log(1, {"loss/total": 1.0})
    assert "Audit of the reward" not in write_report(tmp_path / "plain", "run", {}).read_text()
