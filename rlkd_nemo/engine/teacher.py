"""A frozen Megatron model on the training ranks: teacher or reference."""

from __future__ import annotations

from collections.abc import Sequence

from rlkd_nemo.engine.ranks import Ranks

import torch

from rlkd_nemo.engine.scoring import sequence_log_probs


class FrozenModel:
    """Implements `interfaces.Teacher` over a model of `build_model`; all ranks call it together.

    Args:
        temperature: the rollout temperature; it divides this model's logits as it does the student's.
    """

    def __init__(self, model: torch.nn.Module, ranks: Ranks, *, temperature: float, pad_id: int) -> None:
        self.model, self.ranks = model.eval().requires_grad_(False), ranks
        self.temperature, self.pad_id = temperature, pad_id

    def log_probs(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """For each pair, float32 [len(response)], nats."""
        return sequence_log_probs(
            self.model, self.ranks, prompts, responses, temperature=self.temperature, pad_id=self.pad_id
        )[0]
