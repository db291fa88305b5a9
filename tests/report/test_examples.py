from rlkd_nemo.report.audit import RolloutAudit
from rlkd_nemo.report.examples import MAX_CHARACTERS, examples, side_by_side


def keep(tmp_path, rollout, step, *rewards, **options):
    made = [rollout(f"r{reward}", reward, sample=i, **options) for i, reward in enumerate(rewards)]
    RolloutAudit(tmp_path).write(step, *zip(*made))


def shown(found):
    return [(row["step"], row["kind"], row["response"]) for row in found]


def test_best_and_worst_of_the_first_and_the_last_step(tmp_path, rollout):
    for step, rewards in ((1, (2.0, 1.0, 3.0)), (2, (9.0, 9.5)), (3, (5.0, 5.0))):
        keep(tmp_path, rollout, step, *rewards)
    # Equal rewards have no worst.
    assert shown(examples(tmp_path, 3)) == [(1, "best", "r3.0"), (1, "worst", "r1.0"), (3, "best", "r5.0")]
    # Step 3 belongs to an earlier, longer run.
    assert shown(examples(tmp_path, 2, first=False)) == [(2, "best", "r9.5"), (2, "worst", "r9.0")]


def test_a_run_without_an_audit_shows_none(tmp_path):
    assert examples(tmp_path, 5) == []


def test_a_rollout_without_a_reward_is_shown_as_such(tmp_path, rollout, system_failure):
    keep(tmp_path, rollout, 1, 1.0, failure=system_failure)
    (row,) = examples(tmp_path, 1)
    assert row["kind"] == "without a reward"
    assert row["components"][1] == {"name": "structure", "value": None, "failure": "judge failed"}


def test_long_text_is_cut_and_says_by_how_much(tmp_path, rollout):
    RolloutAudit(tmp_path).write(1, *([part] for part in rollout("x" * (MAX_CHARACTERS + 7))))
    (row,) = examples(tmp_path, 1)
    assert len(row["response"]) == MAX_CHARACTERS and row["cut"] == 7


def states(student, teacher, parts_at):
    row = {"student_steps": student, "teacher_steps": teacher, "parts_at": parts_at}
    return [pair["state"] for pair in side_by_side(row)["pairs"]]


def test_rows_are_same_until_the_parting():
    steps = [{"meta": name} for name in "abcd"]
    assert states(steps, steps, None) == ["same"] * 4
    assert states(steps, steps, 1) == ["same", "parts", "after", "after"]
    # The student stopped early: it parts where its first step is missing.
    assert states(steps[:2], steps, 2) == ["same", "same", "parts", "after"]
    # It went on after the reference had ended.
    assert states(steps, steps[:3], None) == ["same", "same", "same", "after"]
    # Nothing to compare with.
    assert states(steps[:1], [], None) == [""]
    assert states([], [], None) == []
    assert states([], steps[:2], None) == ["", ""]


def test_a_step_with_half_its_credit_says_so():
    steps = [{"meta": "a", "question": "1+1", "answer": "2"}] * 2
    row = {
        "student_steps": steps, "teacher_steps": steps, "parts_at": None,
        "components": {"structure": {"value": 0.75, "failure": None, "detail": {"weights": [1.0, 0.5]}}},
    }  # fmt: skip
    assert [pair["state"] for pair in side_by_side(row)["pairs"]] == ["same", "half"]
