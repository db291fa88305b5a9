"""Two hand-checked responses, lengths 3 and 2, with advantages +1 and -1; the sixth place is padding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlkd_nemo.losses.batch import TokenBatch

PADDING = -7.0


@pytest.fixture
def rows() -> Callable[..., Tensor]:
    """Float64 [2, 3] from the five values of the two responses."""

    def build(*values: float, padding: float = PADDING) -> Tensor:
        return torch.tensor([values[:3], [*values[3:], padding]], dtype=torch.float64)

    return build


@pytest.fixture
def two_responses(rows) -> TokenBatch:
    return TokenBatch(
        log_probs=rows(-0.50, -1.20, -0.30, -0.90, -2.00).requires_grad_(),
        old_log_probs=rows(-0.70, -1.00, -0.35, -0.80, -1.50),
        advantages=torch.tensor([[1.0], [-1.0]], dtype=torch.float64),
        mask=torch.tensor([[True, True, True], [True, True, False]]),
        teacher_log_probs=rows(-0.20, -3.00, -0.40, -2.50, -0.60),
    )


@pytest.fixture
def kept() -> Callable[[Tensor], list[float]]:
    """The five values of the two responses, without padding."""

    def pick(values: Tensor) -> list[float]:
        flat = values.detach().flatten().tolist()
        return flat[:5]

    return pick
