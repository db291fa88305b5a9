"""The teacher's log-probs made safe for arithmetic, and the metrics of every objective that has a teacher."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlkd_nemo.errors import ShapeError
from rlkd_nemo.losses.batch import TokenBatch
from rlkd_nemo.losses.kl import k1, k3
from rlkd_nemo.losses.metrics import Metric

# Nats. A token the teacher all but excludes carries no more information at -60 than at -20, only more numerical noise.
FLOOR = -20.0


@dataclass(frozen=True, eq=False)
class TeacherTokens:
    """The teacher on a masked batch, [batch, tokens].

    Attributes:
        log_probs: l_T, at least FLOOR; l_old where the teacher has nothing to say, so that no arithmetic meets a hole.
        where: bool, true where the teacher's term applies.
        floored: bool, true where l_T was below FLOOR, infinite or NaN and FLOOR stands in its place.
    """

    log_probs: Tensor
    where: Tensor
    floored: Tensor

    def metrics(self, batch: TokenBatch) -> dict[str, Metric]:
        """Over the teacher's tokens: KL(student||teacher) by k3, mean gap l_S - l_T, share of replaced values."""
        student = batch.log_probs.detach()
        return {
            "kl_teacher": Metric.mean(k3(student, self.log_probs), self.where),
            "teacher_gap_mean": Metric.mean(k1(student, self.log_probs), self.where),
            "teacher_floored_fraction": Metric.mean(self.floored, self.where),
        }


def teacher_tokens(batch: TokenBatch, objective: str) -> TeacherTokens:
    """The teacher's log-probs of a batch that `TokenBatch.masked` returned.

    Raises: ShapeError when the batch has none; `objective` is named in the message.
    """
    if batch.teacher_log_probs is None or batch.teacher_mask is None:
        raise ShapeError(
            f"objective {objective} needs batch.teacher_log_probs; got None; set teacher.restore_from_path"
        )
    given, where = batch.teacher_log_probs, batch.teacher_mask
    floored = where & ~(torch.isfinite(given) & (given >= FLOOR))
    return TeacherTokens(torch.where(where, given.masked_fill(floored, FLOOR), batch.old_log_probs), where, floored)


def influence_share(slope: Tensor, without_teacher: Tensor, mask: Tensor) -> Metric:
    """Share of tokens whose pull on l_S differs by more than 1 % from what it were without the teacher.

    Covers a changed clip decision, since a clipped token's slope is 0; without advantage it is 0 either way.

    Args: slope, without_teacher: d per_token / d l_S, [batch, tokens], detached; mask: bool.
    """
    return Metric.mean((slope - without_teacher).abs() > 0.01 * without_teacher.abs(), mask)
