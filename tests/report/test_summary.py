import json

from rlkd_nemo.report.summary import write_summary


def test_summary_is_strict_json_and_replaced_whole(tmp_path):
    write_summary(tmp_path, {"old": 1})
    path = write_summary(
        tmp_path / ".", {"accuracy": 0.5, "lost": float("nan"), "interval": (0.25, 0.75), "rows": {"a": 1}}
    )
    assert json.loads(path.read_text()) == {"accuracy": 0.5, "lost": None, "interval": [0.25, 0.75], "rows": {"a": 1}}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]
