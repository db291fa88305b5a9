"""What holds for each objective of the folder, under every combination of clamp, dual clip and importance weights."""

from __future__ import annotations

import importlib
import itertools
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from rlkd_nemo.config.objectives import KDRL, OBJECTIVES, OPD, TRRD, needs_teacher
from rlkd_nemo.errors import ConfigError
from rlkd_nemo.losses import load, names
from rlkd_nemo.losses.batch import TokenBatch
from rlkd_nemo.losses.influence import self_test, synthetic_batch, teacher_influence
from rlkd_nemo.losses.metrics import merge, summary
from rlkd_nemo.losses.reduce import token_weights

VARIANTS: dict[str, list[dict[str, object]]] = {
    "trrd": [{"clamp": clamp} for clamp in ("ratio", "anchor", "none")] + [{"alpha": 1.0}, {"alpha": 0.0}],
    "kdrl": [{"estimator": "k2", "beta": 0.2}, {"estimator": "k3", "beta": 0.2}, {}],
}
SHARED = [
    {"dual_clip": dual, "tis_cap": cap, "reference_kl": kl}
    for dual, cap, kl in itertools.product((None, 1.2), (None, 1.02), (0.0, 0.3))
]
CASES = [
    pytest.param(name, OBJECTIVES[name](**own, **shared), id=f"{name}-{own}-{list(shared.values())}")
    for name in OBJECTIVES
    for own in VARIANTS.get(name, [{}])
    for shared in SHARED
]
PLAIN = [
    pytest.param(name, OBJECTIVES[name](**own), id=f"{name}-{own}")
    for name in OBJECTIVES
    for own in VARIANTS.get(name, [{}])
]
LOG_PROBS = [f.name for f in fields(TokenBatch) if f.name.endswith("log_probs")]


def evaluate(name: str, batch: TokenBatch, settings: object) -> tuple[Tensor, Tensor]:
    log_probs = batch.log_probs.detach().requires_grad_()
    per_token = load(name)(replace(batch, log_probs=log_probs), settings).per_token
    return per_token.detach(), torch.autograd.grad(per_token.sum(), log_probs)[0]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_gradient_equals_central_differences(name, settings):
    batch, h = synthetic_batch(5, rows=4, tokens=12), 1e-6
    _, gradient = evaluate(name, batch, settings)
    up, _ = evaluate(name, replace(batch, log_probs=batch.log_probs + h), settings)
    down, _ = evaluate(name, replace(batch, log_probs=batch.log_probs - h), settings)
    torch.testing.assert_close(gradient, (up - down) / (2 * h), rtol=1e-7, atol=1e-7)


def test_the_gradient_batch_meets_every_side_of_the_clips():
    settings = TRRD(clamp="none", dual_clip=1.2, tis_cap=1.02)
    found = summary(load("trrd")(synthetic_batch(5, rows=4, tokens=12), settings).metrics)
    for name in ("clip_fraction_high", "clip_fraction_low", "clip_fraction_positive", "tis_capped_fraction"):
        assert 0 < found[name] < 1, name


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_masked_equals_dropped_even_over_nan(name, settings):
    batch = synthetic_batch(6, rows=4, tokens=12)
    mask = batch.mask.clone()
    mask[:, 7:] = False
    nan = float("nan")
    holed = {field: getattr(batch, field).masked_fill(~mask, nan) for field in LOG_PROBS}
    holed["advantages"] = batch.advantages.expand(4, 12).masked_fill(~mask, nan)
    masked = replace(batch, mask=mask, **holed)
    short = replace(batch, mask=mask[:, :7], **{field: getattr(batch, field)[:, :7] for field in LOG_PROBS})
    for found, expected in zip(evaluate(name, masked, settings), evaluate(name, short, settings), strict=True):
        assert torch.equal(found[:, :7], expected)
        assert found[:, 7:].eq(0).all()
    objective = load(name)
    assert summary(objective(masked, settings).metrics) == pytest.approx(
        summary(objective(short, settings).metrics), abs=1e-12
    )


@pytest.mark.parametrize("how", ["seq_mean", "token_mean", "constant"])
@pytest.mark.parametrize(("name", "settings"), PLAIN)
def test_a_split_changes_neither_gradient_nor_metrics(name, settings, how):
    batch = synthetic_batch(7, rows=5, tokens=9)
    lengths = torch.tensor([9, 2, 5, 1, 7])
    valid = torch.tensor([True, True, False, True, True])
    mask = (torch.arange(9) < lengths[:, None]) & valid[:, None]
    batch = replace(batch, mask=mask)
    weights = token_weights(mask, valid, how, max_new_tokens=9)
    objective, log_probs = load(name), batch.log_probs.detach().requires_grad_()

    def rows(part: slice) -> TokenBatch:
        values = {f.name: getattr(batch, f.name) for f in fields(TokenBatch)} | {"log_probs": log_probs}
        return TokenBatch(**{key: None if value is None else value[part] for key, value in values.items()})

    whole = objective(rows(slice(None)), settings)
    expected = torch.autograd.grad((weights * whole.per_token).sum(), log_probs)[0]
    gradient, metrics = torch.zeros_like(expected), None
    for part in (slice(0, 1), slice(1, 1), slice(1, 4), slice(4, 5)):  # the second is empty
        loss = objective(rows(part), settings)
        gradient += torch.autograd.grad((weights[part] * loss.per_token).sum(), log_probs)[0]
        metrics = loss.metrics if metrics is None else merge(metrics, loss.metrics)
    assert torch.equal(gradient, expected)
    assert metrics is not None and summary(metrics) == pytest.approx(summary(whole.metrics), rel=1e-12)


@pytest.mark.parametrize(("name", "settings"), PLAIN)
def test_an_all_masked_batch_gives_zero_and_no_numbers(name, settings):
    batch = synthetic_batch(8, rows=2, tokens=3)
    loss, gradient = evaluate(name, replace(batch, mask=~batch.mask), settings)
    assert loss.eq(0).all() and gradient.eq(0).all()
    assert summary(load(name)(replace(batch, mask=~batch.mask), settings).metrics).keys() <= {"alpha", "beta"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "settings"), PLAIN)
def test_the_dtype_is_preserved(name, settings, dtype):
    batch = synthetic_batch(9, rows=2, tokens=3)
    batch = replace(batch, **{field: getattr(batch, field).to(dtype) for field in LOG_PROBS})  # advantages stay float64
    loss, gradient = evaluate(name, batch, settings)
    assert loss.dtype == gradient.dtype == dtype


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_teacher_matters_by_default(name):
    found = self_test(name, OBJECTIVES[name]())
    if name == "grpo":
        assert found is None
    else:
        assert found is not None and found > 1e-3  # the gate's default


def test_objectives_without_teacher_are_exempt():
    assert self_test("trrd", TRRD(alpha=1.0)) is None
    assert self_test("kdrl", KDRL(beta=0.0)) is None


def test_a_teacher_that_comes_in_late_is_seen():
    late = self_test("trrd", TRRD(alpha=1.0, alpha_final=0.5, alpha_steps=50))
    assert late is not None and late > 1e-3


def test_a_teacher_blind_loss_is_caught():
    def blind(batch, settings, step=0):
        # The classical slip: the teacher's term is detached, so it moves the loss and not the gradient.
        fixed = load("kdrl")(replace(batch, log_probs=batch.log_probs.detach()), settings, step)
        plain = load("grpo")(batch, settings, step)
        return replace(plain, per_token=plain.per_token + fixed.per_token)

    batch = synthetic_batch()
    assert teacher_influence(blind, KDRL(beta=0.2), batch) == 0.0
    assert teacher_influence(load("kdrl"), KDRL(beta=0.2), batch) > 0.05


def test_influence_by_hand():
    one = torch.ones(1, 1, dtype=torch.float64)
    batch = TokenBatch(-1 * one, -1 * one, one, one.bool(), teacher_log_probs=-1.2 * one)
    # TRRD, alpha 0: g(T) = -exp(.2), g(old) = -1.
    expected = (1.221402758160 - 1) / 1.221402758160
    assert teacher_influence(load("trrd"), TRRD(alpha=0.0), batch) == pytest.approx(expected)
    # OPD with teacher = old has no gradient at all.
    assert teacher_influence(load("opd"), OPD(), batch) == 1.0


def test_the_folder_is_the_registry():
    assert names() == sorted(OBJECTIVES)
    for name in names():
        assert load(name) is getattr(importlib.import_module(f"rlkd_nemo.losses.{name}"), name)


@pytest.mark.parametrize("name", ["reduce", "batch", "influence", "TRRD", "", "trdr"])
def test_a_wrong_name_lists_the_choices(name):
    with pytest.raises(ConfigError, match=f"objective.name='{name}'.*grpo, kdrl, opd, trrd"):
        load(name)


@pytest.mark.parametrize(("name", "settings"), PLAIN)
def test_metric_names_depend_on_settings_only(name, settings):
    batch = synthetic_batch(10, rows=2, tokens=3)
    objective = load(name)
    full, empty = objective(batch, settings).metrics, objective(replace(batch, mask=~batch.mask), settings).metrics
    assert full.keys() == empty.keys()
    assert ("kl_teacher" in full) == needs_teacher(settings)
