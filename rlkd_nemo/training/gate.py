"""Checks before the first update: is the teacher felt, and do the engines agree?"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from rlkd_nemo.config.objectives import PolicyObjective
from rlkd_nemo.config.schema import Gate
from rlkd_nemo.errors import GateError
from rlkd_nemo.losses.influence import self_test
from rlkd_nemo.types import Rollout

log = logging.getLogger(__name__)


def teacher_gate(name: str, settings: PolicyObjective, gate: Gate) -> float | None:
    """Refuse an objective whose gradient does not depend on its teacher.

    Returns: the influence; None for objectives without a teacher, which is logged.
    Raises: GateError.
    """
    influence = self_test(name, settings)
    if influence is None:
        log.info("objective %s has no teacher by its settings; the teacher gate does not apply", name)
    elif influence < gate.min_teacher_influence:
        raise GateError(
            f"objective {name}: replacing the teacher by the old policy moves only {influence:.2e} of the gradient; "
            f"wanted at least gate.min_teacher_influence={gate.min_teacher_influence:g}. "
            "As set, this objective would train without its teacher"
        )
    else:
        log.info("objective %s: the teacher moves %.3f of the gradient", name, influence)
    return influence


def log_prob_gap(rollouts: Sequence[Rollout], trainer_log_probs: Sequence[torch.Tensor]) -> dict[str, float]:
    """`rollout/log_prob_gap_mean` and `..._max`: |sampler - trainer| over all response tokens, nats."""
    flat = torch.cat(_gaps(rollouts, trainer_log_probs))
    return {"rollout/log_prob_gap_mean": float(flat.mean()), "rollout/log_prob_gap_max": float(flat.max())}


def _gaps(rollouts: Sequence[Rollout], trainer_log_probs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [(torch.tensor(r.log_probs) - lp).abs() for r, lp in zip(rollouts, trainer_log_probs)]


def sampler_gate(
    rollouts: Sequence[Rollout], trainer_log_probs: Sequence[torch.Tensor], gate: Gate, *, fp8: bool = False
) -> dict[str, float]:
    """Refuse a sampler whose log-probs are not the trainer's for the same weights.

    Args:
        trainer_log_probs: per rollout float32 [len(response)], old policy in the training layout.
        fp8: the trainer computes in FP8, the sampler in bf16: `gate.max_log_prob_gap_fp8` is the bound.
    Returns: `rollout/log_prob_gap_mean` and `..._max`, nats, absolute, over all response tokens.
    Raises: GateError naming the worst token.
    """
    metrics = log_prob_gap(rollouts, trainer_log_probs)
    mean, largest = metrics["rollout/log_prob_gap_mean"], metrics["rollout/log_prob_gap_max"]
    key = "max_log_prob_gap_fp8" if fp8 else "max_log_prob_gap"
    if not mean <= getattr(gate, key):
        gaps = _gaps(rollouts, trainer_log_probs)
        worst = max(range(len(gaps)), key=lambda i: float(gaps[i].max()))
        token = int(gaps[worst].argmax())
        raise GateError(
            f"sampler and trainer disagree by {mean:.2e} nats a token (largest {largest:.2e}); wanted at most "
            f"gate.{key}={getattr(gate, key):g}. Worst: problem {rollouts[worst].problem.id}, "
            f"response token {token}: sampler {rollouts[worst].log_probs[token]:.4f}, "
            f"trainer {float(trainer_log_probs[worst][token]):.4f}. "
            "Weights, temperature or tokenizer differ between the two"
        )
    return metrics
