"""Too many rollouts without a reward: the loop stops, learns nothing from the step, and keeps the state before it."""

from types import SimpleNamespace

import pytest

from rlkd_nemo.errors import FailureBudgetError
from rlkd_nemo.training import fit
from tests.training.test_dynamic_sampling import FlatFor, trainer


def stopped(monkeypatch, *, failing_at, asked_to_stop=False, saved_before=None):
    """A trainer of 5 steps whose scorer fails from step `failing_at` on: (what fit did, saves, trainer)."""
    made = trainer(FlatFor(set(), failing={f"p{n}" for n in range(4 * failing_at, 400)}))
    made.cfg.trainer.rlkd = fit.Config().trainer.rlkd
    made.cfg.trainer.rlkd.max_steps, made.cfg.trainer.rlkd.val_check_interval = 5, 0
    made.cfg.trainer.rlkd.save_interval = saved_before or 100
    saves = []
    made.save = lambda step, metrics, state: saves.append((step, dict(state)))
    made.stop_requested = lambda: asked_to_stop and len(saves) > 0
    made.actor = SimpleNamespace(prepare_for_inference=lambda: None)
    for name in ("teach", "sync"):
        monkeypatch.setattr(made, name, lambda *_: None)
    monkeypatch.setattr(made, "gate", lambda experience: {})
    monkeypatch.setattr(made, "update", lambda experience: {})
    monkeypatch.setattr(fit, "teacher_gate", lambda *_: None)
    return made, saves


def test_the_state_before_the_step_is_saved(monkeypatch):
    made, saves = stopped(monkeypatch, failing_at=2)
    with pytest.raises(FailureBudgetError, match="8 of 8 rollouts have no reward"):
        made.fit()
    ((step, state),) = saves
    # two steps of 4 prompts and 8 rollouts: nothing of the third is in the state
    assert (step, state["step"], state["prompts_taken"], state["rollouts"]) == (2, 2, 8, 16)


def test_a_step_that_is_saved_already_is_not_saved_again(monkeypatch):
    made, saves = stopped(monkeypatch, failing_at=2, saved_before=1)
    with pytest.raises(FailureBudgetError):
        made.fit()
    assert [step for step, _ in saves] == [1, 2]


def test_a_signal_during_the_failure_is_a_preemption(monkeypatch):
    made, saves = stopped(monkeypatch, failing_at=2, asked_to_stop=True)
    assert made.fit() is False and [step for step, _ in saves] == [2]
