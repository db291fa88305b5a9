"""What an evaluation that was stopped must find again, and what it does not start beside."""

import dataclasses
from types import SimpleNamespace

import pytest

from rlkd_nemo import evaluation_job
from rlkd_nemo.config.load import load
from rlkd_nemo.errors import InputError
from rlkd_nemo.lifecycle.run_lock import RunLock
from rlkd_nemo.types import Problem


@pytest.fixture
def cfg(tmp_path):
    (tmp_path / "weights").mkdir()
    paths = [f"model.restore_from_path={tmp_path}/weights", f"exp_manager.exp_dir={tmp_path}/out"]
    return load("rlkd_demo", paths)


@pytest.mark.parametrize("change", [{"answer": "6"}, {"teacher_paths": ("u",)}, {"prompt": "q"}, {"id": "i2"}])
def test_other_problems_under_the_same_settings_are_something_else(cfg, tmp_path, change):
    problems = [Problem("i1", "p", "5", ("t",)), Problem("i3", "r", "7", ("v",))]
    about = evaluation_job._about(cfg, tmp_path / "weights", problems)
    other = evaluation_job._about(cfg, tmp_path / "weights", [dataclasses.replace(problems[0], **change), problems[1]])
    assert about == evaluation_job._about(cfg, tmp_path / "weights", list(problems))
    assert {key for key in about if about[key] != other[key]} == {"problems"}


def test_the_second_of_two_jobs_in_a_directory_is_refused(cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation_job.jobs, "load_sampler", lambda *_: pytest.fail("it went on"))
    other = RunLock(tmp_path / "out")
    other.acquire()
    with pytest.raises(InputError, match="in use by another job"):
        evaluation_job.run(cfg, SimpleNamespace(is_main=True))
    other.release()
    assert not list((tmp_path / "out").iterdir())
