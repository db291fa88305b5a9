"""Which metric a checkpoint may be chosen by."""

import pytest

from rlkd_nemo.config.load import load
from rlkd_nemo.config.monitor import VALIDATION
from rlkd_nemo.config.rules import check
from rlkd_nemo.training.evaluate import Evaluation


def problems(monitor, val_check_interval=10):
    cfg = load("rlkd_demo", [f"trainer.rlkd.val_check_interval={val_check_interval}"])
    cfg.exp_manager.checkpoint_callback_params.monitor = monitor
    return [problem for problem in check(cfg) if "monitor" in problem]


@pytest.mark.parametrize("name", ["validation/accuracy", "validation/structure", "reward/total", "loss/grad_norm"])
def test_a_metric_of_a_step(name):
    assert problems(name) == []


@pytest.mark.parametrize("name", ["val_loss", "validation/acuracy", "loss/", "time/step_s", ""])
def test_a_name_that_no_step_has(name):
    (problem,) = problems(name)
    assert repr(name) in problem and "reward/total" in problem
    if name == "validation/acuracy":
        assert problem.count("validation/accuracy") > 1  # the nearest is named again


def test_what_is_never_measured():
    assert "val_check_interval=0" in problems("validation/structure", 0)[0]
    assert problems("reward/total", 0) == []
    assert problems("validation/accuracy", 0) == []


def test_the_names_are_those_that_validation_gives():
    made = Evaluation(0.5, 0.5, (0.4, 0.6), (0.4, 0.6), 3.0, 1.0, 0.0, 0)
    assert sorted(made.metrics()) == sorted(f"validation/{name}" for name in VALIDATION)
