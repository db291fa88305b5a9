"""The weight of each token in the loss of a whole optimizer update.

Weights are made once, before the update is split over micro-batches and ranks; a sum of weighted losses is then the
same for every split, which a mean of means is not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlkd_nemo.config.objectives import AGGREGATIONS
from rlkd_nemo.errors import ConfigError, ShapeError


def token_weights(
    mask: Tensor,
    valid: Tensor,
    how: str,
    *,
    num_sequences: int | Tensor | None = None,
    num_tokens: int | Tensor | None = None,
    max_new_tokens: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Weights w with loss = sum(w * per_token) over all of an update.

    With N valid rows of |y_i| tokens: `seq_mean` 1/(N |y_i|) (arXiv:2402.03300, 2602.22495), `token_mean`
    1/sum |y_i| (arXiv:2503.14476), `constant` 1/(N max_new_tokens) (arXiv:2503.20783).
    N counts every valid row, those without advantage or without a token too.

    Args:
        mask: bool [batch, tokens], true on response tokens; whole rows, so that |y_i| is the global length.
        valid: bool [batch], true on scored rows. An objective must not see the others' tokens either: a NaN times a
            weight of 0 is NaN, so hand it `mask & valid[:, None]`.
        how: one of `config.objectives.AGGREGATIONS`.
        num_sequences, num_tokens: N and sum |y_i| of the update when `mask` is only a part of it; None: count here.
        max_new_tokens: needed by `constant`.

    Returns: [batch, tokens] of `dtype`; 0 outside the mask and on invalid rows; all 0 when no row is valid.
    Raises: ShapeError; ConfigError for an unknown `how` or a missing max_new_tokens.
    """
    if mask.ndim != 2 or mask.dtype != torch.bool or valid.dtype != torch.bool or valid.shape != mask.shape[:1]:
        raise ShapeError(
            f"mask is {mask.dtype} {tuple(mask.shape)} and valid {valid.dtype} {tuple(valid.shape)}; "
            "wanted torch.bool [batch, tokens] and [batch]"
        )
    kept = mask & valid[:, None]
    lengths = kept.sum(dim=1, keepdim=True, dtype=dtype)
    sequences = valid.sum(dtype=dtype) if num_sequences is None else num_sequences
    denominator: int | Tensor
    if how == "seq_mean":
        denominator = sequences * lengths
    elif how == "token_mean":
        denominator = lengths.sum() if num_tokens is None else num_tokens
    elif how == "constant":
        if max_new_tokens is None or max_new_tokens < 1:
            raise ConfigError(f"aggregation 'constant' needs rollout.max_new_tokens >= 1; got {max_new_tokens!r}")
        denominator = sequences * max_new_tokens
    else:
        raise ConfigError(f"objective.aggregation={how!r} is unknown; wanted one of {', '.join(AGGREGATIONS)}")
    # Every denominator of a kept token is at least 1; the clamp only serves rows and updates that have none.
    scale = torch.as_tensor(denominator, dtype=dtype, device=mask.device).clamp(min=1)
    return kept.to(dtype) / scale
