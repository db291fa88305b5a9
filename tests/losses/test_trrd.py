from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlkd_nemo.config.objectives import GRPO, TRRD
from rlkd_nemo.errors import ConfigError, ShapeError
from rlkd_nemo.losses.batch import TokenBatch
from rlkd_nemo.losses.grpo import grpo
from rlkd_nemo.losses.influence import synthetic_batch
from rlkd_nemo.losses.metrics import summary
from rlkd_nemo.losses.reduce import token_weights
from rlkd_nemo.losses.trrd import alpha_at, trrd

NAN, INF = float("nan"), float("inf")
GRPO_RATIOS = [1.221402758160, 0.818730753078, 1.051271096376, 0.904837418036, 0.606530659713]
# settings; ratios; loss as seq_mean and token_mean; gradient of the objective (minus the loss) a token
VECTORS = {
    "alpha 1": (
        TRRD(alpha=1.0),
        GRPO_RATIOS,
        (-0.089024746760, -0.277313437916),
        [1.221402758160, 0.818730753078, 1.051271096376, -0.904837418036, 0],
    ),
    "no clamp": (
        TRRD(clamp="none"),
        [0.951229424501, 2.225540928492, 1.077884150885, 2.117000016613, 0.386741023455],
        (0.177731074922, -0.078422711755),
        [0.951229424501, 0, 1.077884150885, -2.117000016613, 0],
    ),
    "clamp ratio": (
        TRRD(),
        [0.951229424501, 1.491824697641, 1.077884150885, 1.568312185490, 0.472366552741],
        (0.040559117142, -0.188160277979),
        [0.951229424501, 0, 1.077884150885, -0.784156092745, 0],
    ),
    "clamp anchor": (
        TRRD(clamp="anchor"),
        [0.951229424501, 1.349858807576, 1.077884150885, 1.491824697641, 0.386741023455],
        (0.021437245179, -0.203457775549),
        [0.951229424501, 0, 1.077884150885, -1.491824697641, 0],
    ),
    "alpha 0": (
        TRRD(alpha=0.0),
        [0.740818220682, 2.718281828459, 1.105170918076, 2.718281828459, 0.367879441171],
        (0.358572267322, 0.078458537940),
        [0.740818220682, 0, 1.105170918076, 0, 0],
    ),
}


@pytest.mark.parametrize("case", VECTORS)
def test_vectors(two_responses, kept, case):
    settings, ratios, (seq, tok), gradient = VECTORS[case]
    loss = trrd(two_responses, settings)
    valid = torch.tensor([True, True])
    for how, expected in (("seq_mean", seq), ("token_mean", tok)):
        value = (token_weights(two_responses.mask, valid, how) * loss.per_token).sum().item()
        assert value == pytest.approx(expected, abs=1e-9)
    loss.per_token.sum().backward()
    assert [-g for g in kept(two_responses.log_probs.grad)] == pytest.approx(gradient, abs=1e-9)
    found = summary(loss.metrics)
    assert found["ratio_mean"] == pytest.approx(sum(ratios) / 5, abs=1e-9)
    assert found["ratio_max"] == pytest.approx(max(ratios), abs=1e-9)
    assert found["importance_ratio_max"] == pytest.approx(max(GRPO_RATIOS), abs=1e-9)


@pytest.mark.parametrize(
    ("advantage", "expected"),
    [
        (1.0, [0.303265329856, 0.740818220682, 0.860707976425, 1, 1.161834242728, 0, 0]),
        (-1.0, [0, 0, -0.860707976425, -1, -1.161834242728, -1.349858807576, -0.824360635350]),
    ],
)
def test_on_policy_gradient(advantage, expected):
    gap = torch.tensor([[-2, -0.6, -0.3, 0, 0.3, 0.6, 2]], dtype=torch.float64)
    student = torch.full_like(gap, -2.5).requires_grad_()
    batch = TokenBatch(
        student,
        student.detach(),
        torch.tensor([[advantage]], dtype=torch.float64),
        torch.ones_like(gap, dtype=torch.bool),
        teacher_log_probs=student.detach() - gap,
    )
    loss = trrd(batch, TRRD())
    loss.per_token.sum().backward()
    assert [-g for g in student.grad[0].tolist()] == pytest.approx(expected, abs=1e-9)
    # r = exp(d / 2), |d| up to 1: the mean of the seven.
    ratios = [0.606530659713, 0.740818220682, 0.860707976425, 1, 1.161834242728, 1.349858807576, 1.648721270700]
    assert summary(loss.metrics)["ratio_mean"] == pytest.approx(sum(ratios) / 7, abs=1e-9)
    assert summary(loss.metrics)["teacher_clamped_fraction"] == pytest.approx(2 / 7)


def evaluate(objective, batch, settings, step=0):
    log_probs = batch.log_probs.detach().requires_grad_()
    per_token = objective(replace(batch, log_probs=log_probs), settings, step).per_token
    return per_token.detach(), torch.autograd.grad(per_token.sum(), log_probs)[0]


@pytest.mark.parametrize("clamp", ["ratio", "anchor", "none"])
@pytest.mark.parametrize("hole", [None, -INF, INF, NAN])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("constant", [True, False])
def test_alpha_one_is_grpo_to_the_last_bit(clamp, hole, dtype, constant):
    batch = cast(synthetic_batch(1), dtype)
    mask = batch.mask.clone()
    mask[:, 20:] = False
    teacher = batch.teacher_log_probs.clone()
    if hole is not None:
        teacher[0, :] = hole  # inside the mask
        teacher[:, 25:] = hole  # outside
    batch = replace(batch, mask=mask, teacher_log_probs=teacher)
    shared = {"dual_clip": 3.0, "tis_cap": 2.0, "reference_kl": 0.1}
    schedule = {"alpha": 1.0} if constant else {"alpha": 0.3, "alpha_steps": 10}
    loss, gradient = evaluate(trrd, batch, TRRD(clamp=clamp, **shared, **schedule), step=10)
    expected_loss, expected_gradient = evaluate(grpo, batch, GRPO(**shared))
    assert loss.dtype == dtype
    assert torch.equal(loss, expected_loss)
    assert torch.equal(gradient, expected_gradient)
    assert gradient.isfinite().all()


def test_alpha_one_drops_the_teacher_instead_of_weighting_it_with_zero():
    # An excluded token (l_S = -inf) has an infinite gap to the teacher, and 0 * inf is NaN; GRPO's ratio is a plain 0.
    batch = synthetic_batch(1)
    student = batch.log_probs.clone()
    student[0, 0] = -INF
    batch = replace(batch, log_probs=student)
    loss, gradient = evaluate(trrd, batch, TRRD(alpha=0.5, alpha_steps=1, clamp="none"), step=1)
    expected_loss, expected_gradient = evaluate(grpo, batch, GRPO())
    assert torch.equal(loss, expected_loss)
    assert torch.equal(gradient, expected_gradient)


def cast(batch, dtype):
    tensors = {name: value for name, value in vars(batch).items() if value is not None and value.is_floating_point()}
    return replace(batch, **{name: value.to(dtype) for name, value in tensors.items()})


def test_teacher_equal_to_old_is_grpo():
    batch = replace(synthetic_batch(2), teacher_log_probs=synthetic_batch(2).old_log_probs)
    loss, gradient = evaluate(grpo, batch, GRPO())
    anchored = evaluate(trrd, batch, TRRD(clamp="anchor", clamp_value=0.1))
    assert torch.equal(anchored[0], loss)
    assert torch.equal(anchored[1], gradient)

    inside = (batch.log_probs - batch.old_log_probs).abs() <= 0.3
    assert 0 < inside.sum() < inside.numel()
    clamped = evaluate(trrd, batch, TRRD(clamp="ratio", clamp_value=0.3))
    for found, expected in zip(clamped, (loss, gradient), strict=True):
        torch.testing.assert_close(found[inside], expected[inside], rtol=1e-12, atol=1e-12)
        assert not torch.allclose(found[~inside], expected[~inside])


@pytest.mark.parametrize("clamp", ["ratio", "anchor", "none"])
def test_where_the_teacher_says_nothing_the_token_is_grpo_s(clamp):
    batch = synthetic_batch(3)
    teacher_mask = batch.mask.clone()
    teacher_mask[:, ::2] = False
    teacher = batch.teacher_log_probs.masked_fill(~teacher_mask, NAN)
    # A clamp narrower than the ratios would show if these tokens were clamped after all.
    settings = TRRD(clamp=clamp, clamp_value=0.01)
    holed = evaluate(trrd, replace(batch, teacher_log_probs=teacher, teacher_mask=teacher_mask), settings)
    whole, plain = evaluate(trrd, batch, settings), evaluate(grpo, batch, GRPO())
    for found, with_teacher, without in zip(holed, whole, plain, strict=True):
        assert torch.equal(found[~teacher_mask], without[~teacher_mask])
        assert torch.equal(found[teacher_mask], with_teacher[teacher_mask])


def test_unusable_teacher_values_are_floored_and_counted(two_responses, rows):
    teacher = rows(-INF, NAN, -25.0, INF, -0.60, padding=NAN)
    floored = replace(two_responses, teacher_log_probs=teacher)
    by_hand = replace(two_responses, teacher_log_probs=rows(-20.0, -20.0, -20.0, -20.0, -0.60))
    settings = TRRD(clamp="none")
    assert torch.equal(trrd(floored, settings).per_token, trrd(by_hand, settings).per_token)
    assert summary(trrd(floored, settings).metrics)["teacher_floored_fraction"] == pytest.approx(4 / 5)
    assert summary(trrd(by_hand, settings).metrics)["teacher_floored_fraction"] == 0


def test_metrics_by_hand(two_responses):
    found = summary(trrd(two_responses, TRRD()).metrics)
    # Ratios .951 1.492 1.078 | 1.568 .472: token 2 is clipped above, token 5 below; rho .607 clips token 5 as well.
    assert found["clip_fraction_high"] == pytest.approx(1 / 5)
    assert found["clip_fraction_low"] == pytest.approx(1 / 5)
    assert found["clip_fraction_positive"] == pytest.approx(1 / 3)
    assert found["clip_fraction_negative"] == pytest.approx(1 / 2)
    assert found["clip_by_teacher_fraction"] == pytest.approx(1 / 5)
    assert found["clip_by_staleness_fraction"] == pytest.approx(1 / 5)
    # d = -.3 1.8 .1 | 1.6 -1.4: three beyond 1, mean .36, k3 as its own test has it.
    assert found["teacher_clamped_fraction"] == pytest.approx(3 / 5)
    assert found["teacher_gap_mean"] == pytest.approx(0.36)
    assert found["kl_teacher"] == pytest.approx(0.695418319735)
    # Slopes with and without teacher: .951/1.221, 0/.819, 1.078/1.051, .784/.905 differ; token 5 is clipped in both.
    assert found["teacher_influence_share"] == pytest.approx(4 / 5)
    assert found["alpha"] == 0.5
    assert found["policy_loss"] == pytest.approx(-0.188160277979)
    # u = l_old - l_S = -.2 .2 -.05 .1 .5; exp(u) - 1 - u = .018731 .021403 .001229 .005171 .148721
    assert found["kl_old"] == pytest.approx(0.039051, abs=1e-6)


def test_dual_clip_counts_as_clipped_above(two_responses):
    # Without clamp token 4 (A < 0) has ratio 2.117; a dual clip of 2 bounds its loss at 2.
    loss = trrd(two_responses, TRRD(clamp="none", dual_clip=2.0))
    assert loss.per_token[1, 0].item() == pytest.approx(2.0)
    assert torch.equal(loss.per_token[0], trrd(two_responses, TRRD(clamp="none")).per_token[0])  # A > 0: untouched
    loss.per_token.sum().backward()
    assert two_responses.log_probs.grad[1, 0] == 0
    assert summary(loss.metrics)["clip_fraction_high"] == pytest.approx(2 / 5)
    assert summary(loss.metrics)["clip_fraction_negative"] == 1.0


def test_influence_share_knows_that_a_saturated_clamp_passes_only_alpha():
    one = torch.ones(1, 1, dtype=torch.float64)
    # log rho = 1 and log r = .5 * 1 + .5 * clip(3, 1) = 1: equal ratios, but half the gradient.
    batch = TokenBatch(-1 * one, -2 * one, -one, one.bool(), teacher_log_probs=-4 * one)
    assert summary(trrd(batch, TRRD()).metrics)["teacher_influence_share"] == 1.0


def test_alpha_schedule():
    settings = TRRD(alpha=0.5, alpha_final=1.0, alpha_steps=10)
    assert [alpha_at(settings, step) for step in (0, 5, 10, 11)] == [0.5, 0.75, 1.0, 1.0]
    assert alpha_at(TRRD(alpha=0.3), 1000) == 0.3
    # 0.01 + 0.99 is 1 less an ulp in floating point; the end must be exact, or the teacher would never leave.
    assert alpha_at(TRRD(alpha=0.01, alpha_steps=3), 3) == 1.0


def test_the_step_drives_the_loss(two_responses):
    settings = TRRD(alpha=1.0, alpha_final=0.5, alpha_steps=4)
    assert torch.equal(trrd(two_responses, settings, step=4).per_token, trrd(two_responses, TRRD()).per_token)
    assert torch.equal(trrd(two_responses, settings).per_token, grpo(two_responses, GRPO()).per_token)


def test_a_missing_teacher_is_refused_unless_it_is_not_needed(two_responses):
    alone = replace(two_responses, teacher_log_probs=None)
    with pytest.raises(ShapeError, match="trrd needs batch.teacher_log_probs"):
        trrd(alone, TRRD())
    loss = trrd(alone, TRRD(alpha=1.0))
    assert torch.equal(loss.per_token, grpo(alone, GRPO()).per_token)
    assert not [name for name in loss.metrics if "teacher" in name]


def test_an_unknown_clamp_lists_the_choices(two_responses):
    with pytest.raises(ConfigError, match="objective.clamp='hard'.*ratio, anchor, none"):
        trrd(two_responses, TRRD(clamp="hard"))
