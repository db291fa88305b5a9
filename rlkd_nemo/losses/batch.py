"""What an objective takes and gives: log-probs of sampled tokens in, a loss a token and metrics out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlkd_nemo.errors import ShapeError
from rlkd_nemo.losses.metrics import Metric

__all__ = ["Metric", "TokenBatch", "TokenLoss"]

_LOG_PROBS = ("log_probs", "old_log_probs", "teacher_log_probs", "ref_log_probs", "sampler_log_probs")


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Sampled response tokens under several models; index t is the t-th response token.

    All tensors are [batch, tokens] on one device; log-probs are natural, of one floating dtype, at the temperature of
    sampling. What stands where `mask` is false, NaN included, reaches neither loss nor gradient nor metric.

    Attributes:
        log_probs: the student in training, l_S; the only one that carries a gradient.
        old_log_probs: the student of the rollouts as the trainer evaluates it, l_old.
        advantages: unitless, [batch, tokens] or [batch, 1].
        mask: bool, true on response tokens (end of text included) of rows that were scored.
        teacher_log_probs: the frozen teacher, l_T.
        teacher_mask: bool, true where the teacher's term applies; None: wherever mask is true.
        ref_log_probs: the frozen start model, for `reference_kl`.
        sampler_log_probs: as the sampler reported them, for `tis_cap`.

    Raises: ShapeError naming the field.
    """

    log_probs: Tensor
    old_log_probs: Tensor
    advantages: Tensor
    mask: Tensor
    teacher_log_probs: Tensor | None = None
    teacher_mask: Tensor | None = None
    ref_log_probs: Tensor | None = None
    sampler_log_probs: Tensor | None = None

    def __post_init__(self) -> None:
        shape, dtype = self.log_probs.shape, self.log_probs.dtype
        if self.log_probs.ndim != 2 or not dtype.is_floating_point:
            raise ShapeError(f"batch.log_probs is {dtype} {tuple(shape)}; wanted a floating tensor [batch, tokens]")
        for name in _LOG_PROBS:
            value = getattr(self, name)
            if value is not None and (value.shape != shape or value.dtype != dtype):
                raise ShapeError(
                    f"batch.{name} is {value.dtype} {tuple(value.shape)}; wanted {dtype} {tuple(shape)} as log_probs"
                )
        for name in ("mask", "teacher_mask"):
            value = getattr(self, name)
            if value is not None and (value.shape != shape or value.dtype != torch.bool):
                raise ShapeError(
                    f"batch.{name} is {value.dtype} {tuple(value.shape)}; wanted torch.bool {tuple(shape)}"
                )
        broadcastable = tuple(self.advantages.shape) in {tuple(shape), (shape[0], 1)}
        if not (broadcastable and self.advantages.dtype.is_floating_point):
            raise ShapeError(
                f"batch.advantages is {self.advantages.dtype} {tuple(self.advantages.shape)}; "
                f"wanted a floating tensor {tuple(shape)} or {(shape[0], 1)}"
            )
        if self.teacher_mask is not None and self.teacher_log_probs is None:
            raise ShapeError("batch.teacher_mask is given without batch.teacher_log_probs; give both or neither")

    def masked(self) -> TokenBatch:
        """The same batch, safe for arithmetic: 0 wherever `mask` is false, constants detached, both masks explicit.

        Replacing before any arithmetic, and not the result afterwards, is what keeps a NaN in padding out of the
        gradient: 0 * NaN in the backward pass would be NaN.
        """
        outside = ~self.mask

        def constant(value: Tensor) -> Tensor:
            return value.detach().masked_fill(outside, 0.0)

        def optional(value: Tensor | None) -> Tensor | None:
            return None if value is None else constant(value)

        advantages = self.advantages.to(self.log_probs.dtype).expand_as(self.log_probs)
        teacher_mask = self.teacher_mask
        if self.teacher_log_probs is not None:
            teacher_mask = self.mask if teacher_mask is None else teacher_mask & self.mask
        return replace(
            self,
            log_probs=self.log_probs.masked_fill(outside, 0.0),
            old_log_probs=constant(self.old_log_probs),
            advantages=constant(advantages),
            teacher_log_probs=optional(self.teacher_log_probs),
            teacher_mask=teacher_mask,
            ref_log_probs=optional(self.ref_log_probs),
            sampler_log_probs=optional(self.sampler_log_probs),
        )


@dataclass(frozen=True, eq=False)
class TokenLoss:
    """An objective's answer.

    Attributes:
        per_token: [batch, tokens], to be minimised; exactly 0 where the mask is false. The loss of an update is
            sum(weight * per_token) with the weights of `reduce.token_weights`.
        metrics: by name, without an area prefix; detached.
    """

    per_token: Tensor
    metrics: dict[str, Metric]
