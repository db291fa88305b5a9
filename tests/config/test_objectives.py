from __future__ import annotations

import pytest

from rlkd_nemo.config.objectives import GRPO, KDRL, OBJECTIVES, OPD, TRRD, keys, needs_teacher, problems


@pytest.mark.parametrize("name", OBJECTIVES)
def test_defaults_are_in_range(name):
    assert problems(OBJECTIVES[name]()) == []


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (GRPO(clip_low=1.0), "clip_low"),
        (GRPO(clip_high=-0.1), "clip_high"),
        (GRPO(clip_high=float("nan")), "clip_high"),
        (GRPO(dual_clip=1.0), "dual_clip"),
        (GRPO(aggregation="mean"), "aggregation"),
        (GRPO(reference_kl=-1.0), "reference_kl"),
        (GRPO(tis_cap=0.5), "tis_cap"),
        (KDRL(estimator="k1"), "estimator"),
        (KDRL(kd_mask="all"), "kd_mask"),
        (KDRL(beta=-1e-3), "beta"),
        (KDRL(beta_decay=-1.0), "beta_decay"),
        (KDRL(beta=0.0, beta_min=1e-3), "beta_min"),
        (TRRD(alpha=1.1), "alpha"),
        (TRRD(alpha_final=-0.1, alpha_steps=5), "alpha_final"),
        (TRRD(alpha_final=0.9), "alpha_final"),
        (TRRD(alpha_steps=-1), "alpha_steps"),
        (TRRD(clamp="hard"), "clamp"),
        (TRRD(clamp_value=0.0), "clamp_value"),
    ],
)
def test_a_value_out_of_range_names_its_key(settings, key):
    assert any(f"objective.{key}=" in line and "wanted" in line for line in problems(settings))


def test_which_settings_need_a_teacher():
    needed = [TRRD(), TRRD(alpha=1.0, alpha_final=0.5, alpha_steps=9), TRRD(alpha=0.5, alpha_steps=9), KDRL(), OPD()]
    assert all(needs_teacher(settings) for settings in needed)
    assert not any(needs_teacher(settings) for settings in (GRPO(), TRRD(alpha=1.0), KDRL(beta=0.0)))


def test_keys():
    assert {"clip_low", "alpha", "clamp"} <= set(keys("trrd"))
    assert "alpha" not in keys("grpo")
