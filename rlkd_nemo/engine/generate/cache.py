"""Keys and values of the rows being decoded."""

from __future__ import annotations

import torch

from rlkd_nemo.engine.generate.weights import DecoderWeights


class KVCache:
    """Prompts end in the same column, so that a step writes one column and reads the columns before it.

    Rows whose prompt is shorter begin with padding, hidden by an additive mask. Positions are each row's own, so that
    a token is rotated as in training.

    Attributes:
        rows: rows alive; the first so many of the tensors.
        length: columns filled.
        positions: int64 [rows], position of the token to be read next.
        mask: [rows, 1, 1, columns] of the weights' type, 0 or -inf; None when no row has padding.
    """

    def __init__(self, weights: DecoderWeights, prompt_lengths: torch.Tensor, new_tokens: int) -> None:
        """prompt_lengths: int64 [rows], on the weights' device."""
        self.rows = prompt_lengths.shape[0]
        self.length = int(prompt_lengths.max())
        columns = self.length + new_tokens
        shape = (len(weights.layers), 2, self.rows, weights.num_groups, columns, weights.head_dim)
        # Zeros, not whatever was there: a masked column still meets a weight of 0, and 0 x NaN is NaN.
        self.both = torch.zeros(shape, dtype=weights.dtype, device=weights.device)
        self._positions = prompt_lengths.clone()
        self._mask = None
        padding = self.length - prompt_lengths
        if bool(padding.any()):
            hidden = torch.arange(columns, device=weights.device) < padding[:, None]
            self._mask = torch.zeros(hidden.shape, dtype=weights.dtype, device=weights.device)
            self._mask = self._mask.masked_fill_(hidden, float("-inf"))[:, None, None]

    @property
    def positions(self) -> torch.Tensor:
        """See the class."""
        return self._positions[: self.rows]

    @property
    def mask(self) -> torch.Tensor | None:
        """See the class; the filled columns only."""
        return None if self._mask is None else self._mask[: self.rows, :, :, : self.length]

    def fill(self, layer: int, key: torch.Tensor, value: torch.Tensor, rows: slice, prompts: torch.Tensor) -> None:
        """Give `rows` the prompts' keys and values [prompts, columns, groups, head_dim], right-padded.

        Args: prompts: int64 [rows], which prompt each row continues.
        """
        width = key.shape[1]
        first = self.length - width
        # Column c of a row holds its prompt's token c - padding; padding columns get any finite value.
        padding = self.length - self._positions[rows]
        columns = (torch.arange(first, self.length, device=key.device) - padding[:, None]).clamp_(min=0)
        for half, source in enumerate((key, value)):
            self.both[layer, half, rows, :, first : self.length] = source[prompts[:, None], columns].transpose(1, 2)

    def advance(self) -> None:
        """Open the next column."""
        self.length += 1

    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [rows, groups, head_dim] into the newest column; all keys and values [rows, groups, columns, head_dim]."""
        keys, values = self.both[layer, :, : self.rows, :, : self.length].unbind(0)
        keys[:, :, -1].copy_(key)
        values[:, :, -1].copy_(value)
        return keys, values

    def shrink(self, rows: int, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """Keep `rows` rows: those of `sources` move to `targets`, the places of finished rows. Copies only what moves."""
        for source, target in zip(sources.tolist(), targets.tolist()):
            self.both[:, :, target, :, : self.length] = self.both[:, :, source, :, : self.length]
        self._positions[targets] = self._positions[sources]
        if self._mask is not None:
            self._mask[targets] = self._mask[sources]
        self.rows = rows
