"""Settings of the objectives, with the source of each default. No torch: a login node can check them.

The name in the config is the file's name in `rlkd_nemo/losses/` and the lower-cased class name here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

CLAMPS = ("ratio", "anchor", "none")
KL_ESTIMATORS = ("k2", "k3")
KD_MASKS = ("none", "response", "group")
AGGREGATIONS = ("seq_mean", "token_mean", "constant")


@dataclass(frozen=True)
class PolicyObjective:
    """What every clipped policy-gradient objective shares."""

    # Lower and upper clip widths: RLAD's logic runs (arXiv:2602.22495, experiments), DAPO's clip-higher.
    clip_low: float = 0.20
    clip_high: float = 0.28
    # For negative advantages, bound the surrogate at dual_clip * advantage; null: off (papers' default).
    dual_clip: float | None = None
    # seq_mean: mean over a response's tokens, then over responses (RLAD); token_mean: over all tokens (DAPO, KDRL);
    # constant: over responses times max_new_tokens (Dr. GRPO).
    aggregation: str = "seq_mean"
    # Coefficient of the k3 KL to the frozen start model, added to the loss; 0 loads no reference (RLAD: not stated).
    reference_kl: float = 0.0
    # Truncated importance sampling for a sampler that is not the trainer: weight min(exp(l_old - l_sampler), tis_cap);
    # null: off, right for the embedded sampler (Yao et al. 2025 use 2).
    tis_cap: float | None = None


@dataclass(frozen=True)
class GRPO(PolicyObjective):
    """Group relative policy optimisation (arXiv:2402.03300); no teacher."""


@dataclass(frozen=True)
class KDRL(PolicyObjective):
    """GRPO plus a KL to the teacher on the student's own rollouts (arXiv:2506.02208)."""

    aggregation: str = "token_mean"
    # k2: half the squared log-ratio, gradient of the reverse KL (the paper's better one); k3: of the forward KL.
    estimator: str = "k2"
    # Coefficient beta = max(beta - beta_decay * step, beta_min). Constant 2e-3 in the paper;
    # its annealing is 5e-3 -> 1e-3 by 5e-5 a step.
    beta: float = 2e-3
    beta_decay: float = 0.0
    beta_min: float = 0.0
    # none: on every response; response: not on correct ones; group: only in groups without a correct one.
    kd_mask: str = "none"


@dataclass(frozen=True)
class TRRD(PolicyObjective):
    """Trust-region ratio distillation (arXiv:2602.22495): GRPO's ratio anchored on old policy and teacher."""

    # Weight of the old policy in the anchor; 1 is GRPO. 0.5 in all the paper's main runs.
    alpha: float = 0.5
    # Linear schedule from alpha to alpha_final over alpha_steps steps; 0 steps: constant.
    alpha_final: float = 1.0
    alpha_steps: int = 0
    # ratio: appendix B, clamp l_S - l_T (a saturated token passes no teacher gradient);
    # anchor: clamp the constant l_T - l_old instead (gradient whole); none.
    clamp: str = "ratio"
    clamp_value: float = 1.0


@dataclass(frozen=True)
class OPD(PolicyObjective):
    """On-policy distillation: advantage = stop-gradient(l_T - l_old), no reward (Thinking Machines, Oct 2025)."""


OBJECTIVES: dict[str, type[PolicyObjective]] = {cls.__name__.lower(): cls for cls in (GRPO, KDRL, TRRD, OPD)}


def needs_teacher(settings: PolicyObjective) -> bool:
    """True when the objective's gradient depends on the teacher's log-probs at some step."""
    if isinstance(settings, TRRD):
        return settings.alpha != 1.0 or (settings.alpha_steps > 0 and settings.alpha_final != 1.0)
    if isinstance(settings, KDRL):
        return settings.beta > 0.0 or settings.beta_min > 0.0
    return isinstance(settings, OPD)


def problems(settings: PolicyObjective) -> list[str]:
    """Every value out of range, as sentences with the key to change; empty when all is well."""
    found: list[str] = []

    def need(ok: bool, key: str, wanted: str) -> None:
        if not ok:
            found.append(f"objective.{key}={getattr(settings, key)!r} is out of range; wanted {wanted}")

    need(0 <= settings.clip_low < 1, "clip_low", "0 <= clip_low < 1")
    need(settings.clip_high >= 0, "clip_high", "a number >= 0")
    need(settings.dual_clip is None or settings.dual_clip > 1, "dual_clip", "null or a number > 1")
    need(settings.aggregation in AGGREGATIONS, "aggregation", f"one of {', '.join(AGGREGATIONS)}")
    need(settings.reference_kl >= 0, "reference_kl", "a number >= 0")
    need(settings.tis_cap is None or settings.tis_cap >= 1, "tis_cap", "null or a number >= 1")
    if isinstance(settings, KDRL):
        need(settings.estimator in KL_ESTIMATORS, "estimator", f"one of {', '.join(KL_ESTIMATORS)}")
        need(settings.kd_mask in KD_MASKS, "kd_mask", f"one of {', '.join(KD_MASKS)}")
        for key in ("beta", "beta_decay", "beta_min"):
            need(getattr(settings, key) >= 0, key, "a number >= 0")
        # max(beta - ..., beta_min) would otherwise stay at beta_min although beta asks for less.
        need(not settings.beta_min > settings.beta, "beta_min", f"at most objective.beta={settings.beta!r}")
    if isinstance(settings, TRRD):
        need(0 <= settings.alpha <= 1, "alpha", "a number in [0, 1]")
        need(0 <= settings.alpha_final <= 1, "alpha_final", "a number in [0, 1]")
        need(settings.alpha_steps >= 0, "alpha_steps", "a whole number >= 0")
        scheduled = settings.alpha_steps > 0 or settings.alpha_final == 1.0
        need(scheduled, "alpha_final", "its default 1.0 while objective.alpha_steps=0 makes alpha constant")
        need(settings.clamp in CLAMPS, "clamp", f"one of {', '.join(CLAMPS)}")
        need(settings.clamp_value > 0, "clamp_value", "a number > 0")
    return found


def keys(name: str) -> list[str]:
    """The settings that objective `name` understands."""
    return [field.name for field in fields(OBJECTIVES[name])]
