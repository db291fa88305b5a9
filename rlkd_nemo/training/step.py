"""What one step does between rollouts and weights: advantages, the batch of an update, the objective bound to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from rlkd_nemo.advantages import group_advantages, group_statistics, overlong_penalty
from rlkd_nemo.config.objectives import KDRL, PolicyObjective, needs_teacher
from rlkd_nemo.config.schema import Overlong
from rlkd_nemo.errors import FailureBudgetError
from rlkd_nemo.losses import load
from rlkd_nemo.losses.batch import TokenBatch, TokenLoss
from rlkd_nemo.losses.kdrl import teacher_rows
from rlkd_nemo.losses.reduce import token_weights
from rlkd_nemo.training.batch import SequenceBatch
from rlkd_nemo.types import Rollout, Score


@dataclass
class Experience:
    """The rollouts of a step with all that is known about them, row by row.

    Attributes:
        rewards: float64 [rows], NaN on rows without one.   groups: int64 [rows].
        valid: bool [rows], rows that vote in group statistics and loss.
        advantages: float64 [rows].
        old_log_probs, ...: per row float32 [len(response)]; None where the objective needs none.
    """

    rollouts: list[Rollout]
    scores: list[Score]
    rewards: torch.Tensor
    groups: torch.Tensor
    valid: torch.Tensor
    advantages: torch.Tensor
    old_log_probs: list[torch.Tensor] | None = None
    teacher_log_probs: list[torch.Tensor] | None = None
    ref_log_probs: list[torch.Tensor] | None = None


def advantage(
    rollouts: Sequence[Rollout],
    scores: Sequence[Score],
    *,
    std: str,
    overlong: Overlong,
    max_new_tokens: int,
    scale: float,
) -> Experience:
    """Rewards to group advantages; rows without a reward leave mean, deviation and loss.

    Args:
        overlong: `mask` takes truncated rows out as well; `soft` adds DAPO's penalty (arXiv:2503.14476) times `scale`,
            the weight of the outcome, on which scale the paper defines it.
    """
    valid = torch.tensor([score.valid for score in scores], dtype=torch.bool)
    rewards = torch.tensor([float("nan") if s.reward is None else s.reward for s in scores], dtype=torch.float64)
    groups = torch.tensor([rollout.group for rollout in rollouts])
    if overlong.mode == "mask":
        valid &= ~torch.tensor([rollout.truncated for rollout in rollouts])
    elif overlong.mode == "soft":
        rewards += scale * torch.tensor(
            [overlong_penalty(len(r.response_ids), max_new_tokens, overlong.buffer_tokens) for r in rollouts],
            dtype=torch.float64,
        )
    return Experience(
        list(rollouts), list(scores), rewards, groups, valid, group_advantages(rewards, groups, valid, std)
    )


def refuse_too_many_failures(scores: Sequence[Score], max_failed_fraction: float) -> None:
    """Raises FailureBudgetError, with the failures by type, when more rollouts than allowed have no reward."""
    failed = [score for score in scores if not score.valid]
    if len(failed) <= max_failed_fraction * len(scores):
        return
    kinds = Counter(
        f"{name}: {part.failure.value}"
        for score in failed
        for name, part in score.components.items()
        if part.failure is not None and part.failure.by_system
    )
    listed = ", ".join(f"{kind} x {count}" for kind, count in kinds.most_common())
    told = [part.detail.get("error") for score in failed for part in score.components.values() if part.value is None]
    if any(told):
        listed += f"; for example: {next(filter(None, told))}"
    raise FailureBudgetError(
        f"{len(failed)} of {len(scores)} rollouts have no reward ({listed}); rlkd.max_failed_fraction allows "
        f"{max_failed_fraction:g}. Nothing was learned from this step; repair the component or raise the limit"
    )


def updates(experience: Experience, number: int) -> list[list[int]]:
    """Rows of each of `number` updates: whole groups, in order, valid rows only."""
    names = torch.unique(experience.groups).tolist()
    share = -(-len(names) // number)
    parts = [set(names[start : start + share]) for start in range(0, len(names), share)]
    rows = range(len(experience.rollouts))
    return [[i for i in rows if int(experience.groups[i]) in part and bool(experience.valid[i])] for part in parts]


def update_batch(
    experience: Experience,
    rows: Sequence[int],
    settings: PolicyObjective,
    *,
    max_new_tokens: int,
    drop_teacher_at: int | None,
) -> SequenceBatch:
    """The given rows with the weight of each token in the whole update and all that the objective reads.

    Args:
        drop_teacher_at: a token id at which the teacher's term does not count (the student's end of text, where the
            teacher ends with another token); None: it counts everywhere.
    """
    responses = [experience.rollouts[i].response_ids for i in rows]
    lengths = torch.tensor([len(response) for response in responses])
    mask = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
    weights = token_weights(
        mask, torch.ones(len(rows), dtype=torch.bool), settings.aggregation, max_new_tokens=max_new_tokens
    )
    fields: dict[str, list[torch.Tensor]] = {
        "advantages": [torch.full((n,), float(experience.advantages[i])) for i, n in zip(rows, lengths.tolist())]
    }
    for name in ("old_log_probs", "teacher_log_probs", "ref_log_probs"):
        values = getattr(experience, name)
        if values is not None:
            fields[name] = [values[i] for i in rows]
    if settings.tis_cap is not None:
        fields["sampler_log_probs"] = [torch.tensor(experience.rollouts[i].log_probs) for i in rows]
    if experience.teacher_log_probs is not None:
        applies = _teacher_applies(experience, settings)
        fields["teacher_mask"] = [
            torch.tensor([float(bool(applies[i]) and token != drop_teacher_at) for token in response])
            for i, response in zip(rows, responses)
        ]
    return SequenceBatch(
        [experience.rollouts[i].prompt_ids for i in rows],
        responses,
        [row[:n].float() for row, n in zip(weights, lengths.tolist())],
        fields,
    )


def _teacher_applies(experience: Experience, settings: PolicyObjective) -> torch.Tensor:
    kd_mask = settings.kd_mask if isinstance(settings, KDRL) else "none"
    correct = torch.tensor([(s.components["outcome"].value or 0.0) >= 1.0 for s in experience.scores])
    return teacher_rows(kd_mask, correct, experience.groups)


def bind(name: str, settings: PolicyObjective, step: int):
    """Objective `name` at `step` as the function of (log_probs, mask, fields) that the actor differentiates."""
    objective = load(name)
    teacher = needs_teacher(settings)

    def loss(log_probs: torch.Tensor, mask: torch.Tensor, fields: Mapping[str, torch.Tensor]) -> TokenLoss:
        batch = TokenBatch(
            log_probs=log_probs,
            old_log_probs=fields["old_log_probs"],
            advantages=fields["advantages"],
            mask=mask,
            teacher_log_probs=fields["teacher_log_probs"] if teacher else None,
            teacher_mask=fields["teacher_mask"].bool() if teacher else None,
            ref_log_probs=fields.get("ref_log_probs"),
            sampler_log_probs=fields.get("sampler_log_probs"),
        )
        return objective(batch, settings, step)

    return loss


def reward_metrics(experience: Experience) -> dict[str, float]:
    """`reward/...` and `rollout/...`: every component with its own denominator, failures counted by type."""
    out: dict[str, float] = {}
    scores, rollouts = experience.scores, experience.rollouts
    for name in sorted({name for score in scores for name in score.components}):
        parts = [s.components[name] for s in scores if name in s.components]
        values = [part.value for part in parts if part.value is not None]
        if values:
            out[f"reward/{name}"] = sum(values) / len(values)
        out[f"reward/{name}_count"] = float(len(values))
    kinds = Counter(part.failure.value for s in scores for part in s.components.values() if part.failure is not None)
    for kind, count in sorted(kinds.items()):
        out[f"reward/failures_{kind}"] = float(count)
    out["reward/failed_fraction"] = sum(not s.valid for s in scores) / len(scores)
    kept = experience.rewards[experience.valid]
    if len(kept):
        out["reward/total"] = float(kept.mean())
    statistics = group_statistics(experience.rewards, experience.groups, experience.valid)
    if statistics.zero_variance_fraction is not None:
        out["rollout/zero_advantage_groups"] = statistics.zero_variance_fraction
    out["rollout/unusable_groups"] = float(statistics.too_few)
    out["rollout/length_tokens"] = sum(len(r.response_ids) for r in rollouts) / len(rollouts)
    out["rollout/truncated_fraction"] = sum(r.truncated for r in rollouts) / len(rollouts)
    structure, outcome = _pairs(scores)
    if structure is not None:
        out["reward/structure_outcome_correlation"] = float(torch.corrcoef(torch.stack([structure, outcome]))[0, 1])
    return out


def _pairs(scores: Sequence[Score]) -> tuple[torch.Tensor | None, torch.Tensor]:
    both = [
        (s.components["structure"].value, s.components["outcome"].value)
        for s in scores
        if {"structure", "outcome"} <= s.components.keys()
        and s.components["structure"].value is not None
        and s.components["outcome"].value is not None
    ]
    values = torch.tensor(both, dtype=torch.float64).T if both else torch.zeros(2, 0)
    # A correlation needs both to vary.
    if values.shape[1] < 2 or bool((values.std(1) == 0).any()):
        return None, values[1]
    return values[0], values[1]
