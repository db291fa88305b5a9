"""Bad input ends with one clear sentence and exit code 2, before or right after the ranks start."""

import pytest

from tests.integration.conftest import run_example

pytestmark = pytest.mark.ranks


def refused(*arguments, code=2):
    ended = run_example("train_rlkd", *arguments)
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    return ended.err


def test_missing_checkpoint_lists_what_is_there(demo, start, tmp_path):
    wrong = f"model.restore_from_path={demo}/student/checkpoints/step-000011"
    said = refused(*start, wrong, f"exp_manager.exp_dir={tmp_path}")
    assert "no checkpoint at" in said and "step-000010" in said


def test_checkpoint_of_another_shape_names_each_difference(start, tmp_path):
    said = refused(*start, "model.ffn_hidden_size=64", "objective=grpo", f"exp_manager.exp_dir={tmp_path}")
    assert "ffn_hidden_size 48, wanted 64" in said


def test_teacher_and_student_of_different_vocabularies(demo, start, tmp_path):
    # modulus 7 adds digits to the student's vocabulary; the student starts at random, the teacher has the old one
    said = refused(*start, "task.modulus=7", "model.restore_from_path=null", f"exp_manager.exp_dir={tmp_path}")
    assert "vocabulary" in said


def test_a_prompt_longer_than_the_context(start, tmp_path):
    said = refused(
        *start, "model.encoder_seq_length=44", "rollout.max_new_tokens=40", f"exp_manager.exp_dir={tmp_path}"
    )
    assert "the context of 44" in said and "max_new_tokens=40" in said and "model.encoder_seq_length" in said


def test_an_unwritable_run_directory(start, tmp_path):
    (tmp_path / "file").write_text("")
    ended = run_example("train_rlkd", *start, f"exp_manager.exp_dir={tmp_path}/file/run")
    assert ended.code != 0
    assert "file" in ended.err
