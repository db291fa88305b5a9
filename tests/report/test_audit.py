import pytest

from rlkd_nemo.errors import InputError
from rlkd_nemo.report import audit
from rlkd_nemo.report.audit import RolloutAudit


def test_a_row_says_why_the_reward_was_given(tmp_path, rollout, parted):
    made, score = rollout("x", 6.5, detail=parted)
    path = RolloutAudit(tmp_path, 32).write(12, [made], [score], [-0.25])
    assert path == tmp_path / "rollouts" / "step-00012.jsonl" and audit.files(tmp_path) == {12: path}
    (row,) = audit.read(path)
    assert [row[name] for name in ("step", "prompt", "response", "advantage")] == [12, "1 + 1", "x", -0.25]
    assert row["reward"] == 6.5
    assert row["components"]["outcome"] == {"value": 1.0, "failure": None, "detail": {}}
    assert row["student_steps"][1] == {"meta": "guess", "question": "?", "answer": "4"}
    assert row["teacher_steps"][2] == {"meta": "answer", "question": None, "answer": None}
    assert row["parts_at"] == 1


def test_a_system_failure_is_no_zero(tmp_path, rollout, system_failure):
    made, score = rollout(failure=system_failure)
    (row,) = audit.read(RolloutAudit(tmp_path).write(1, [made], [score]))
    assert row["reward"] is None and row["advantage"] is None
    assert row["components"]["structure"] == {"value": None, "failure": "judge_failed", "detail": {}}


@pytest.mark.parametrize(("limit", "kept"), [(-1, [0, 1, 2]), (2, [0, 1]), (0, None), (9, [0, 1, 2])])
def test_limit_keeps_the_first(tmp_path, rollout, limit, kept):
    rollouts, scores = zip(*(rollout(sample=i) for i in range(3)))
    path = RolloutAudit(tmp_path, limit).write(1, rollouts, scores)
    assert (None if path is None else [row["sample"] for row in audit.read(path)]) == kept


def test_a_replayed_step_replaces_its_file_and_a_start_removes_later_ones(tmp_path, rollout):
    for step, text in ((1, "old"), (2, "old"), (1, "new")):
        made, score = rollout(text)
        RolloutAudit(tmp_path).write(step, [made], [score])
    assert audit.read(audit.files(tmp_path)[1])[0]["response"] == "new"
    RolloutAudit(tmp_path, start_step=1)
    assert list(audit.files(tmp_path)) == [1]
    assert not list((tmp_path / "rollouts").glob("*.tmp"))


def test_any_text_survives(tmp_path, rollout):
    # Unicode's own line end, half a character, a quote: all seen in sampled text.
    text = 'a\u2028b\ud83d "c"\n\x00é'
    made, score = rollout(text)
    assert audit.read(RolloutAudit(tmp_path).write(1, [made], [score]))[0]["response"] == text


def test_rows_must_belong_together(tmp_path, rollout):
    made, score = rollout()
    with pytest.raises(ValueError, match="1 rollouts, 2 scores"):
        RolloutAudit(tmp_path).write(1, [made], [score, score])


def test_a_broken_file_names_its_line(tmp_path):
    path = tmp_path / "step-00001.jsonl"
    path.write_text('{"step": 1}\n{"st\n')
    with pytest.raises(InputError, match=r"step-00001\.jsonl:2"):
        audit.read(path)
