"""Ragged sequences in; padded or packed micro-batches out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from rlkd_nemo.errors import ShapeError
from rlkd_nemo.training.partition import MicroBatchSize, round_up


@dataclass
class SequenceBatch:
    """Sequences of one update with their per-token data, ragged, on the host.

    Attributes:
        prompts / responses: token ids, never empty: the first response token is predicted from the prompt.
        weights: per row, float [len(response)]: the weight of each token in the loss of the whole update.
        fields: name -> per row, float [len(response)]: whatever the objective needs (old_log_probs, advantages, ...).
    """

    prompts: list[list[int]]
    responses: list[list[int]]
    weights: list[torch.Tensor] = field(default_factory=list)
    fields: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        empty = [sum(not row for row in rows) for rows in (self.prompts, self.responses)]
        if any(empty) or len(self.prompts) != len(self.responses):
            raise ShapeError(
                f"{len(self.prompts)} prompts, {empty[0]} of them empty, and {len(self.responses)} responses, "
                f"{empty[1]} of them empty; wanted one non-empty response for each non-empty prompt"
            )
        for name, rows in {"weights": self.weights, **self.fields}.items():
            if name == "weights" and not rows:
                continue
            lengths = [len(row) for row in rows]
            if lengths != [len(response) for response in self.responses]:
                raise ShapeError(
                    f"field {name!r} has rows of lengths {lengths[:8]}..., wanted one value a response token"
                )

    def __len__(self) -> int:
        return len(self.responses)

    def take(self, rows: Sequence[int]) -> SequenceBatch:
        """The batch of the given rows, in that order."""
        return SequenceBatch(
            [self.prompts[i] for i in rows],
            [self.responses[i] for i in rows],
            [self.weights[i] for i in rows] if self.weights else [],
            {name: [values[i] for i in rows] for name, values in self.fields.items()},
        )

    def lengths(self) -> list[int]:
        """Tokens of each row, prompt included."""
        return [len(p) + len(r) for p, r in zip(self.prompts, self.responses)]


@dataclass
class MicroBatch:
    """Tensors of a few rows: right-padded, or packed end to end into one row.

    Under context parallelism each row of a micro-batch is cut into 2 x size chunks, of which rank r holds chunks r and
    2 x size - 1 - r (as much work on each rank, causal attention being a triangle); a response token belongs to the
    rank that holds the state which predicts it.

    Attributes:
        tokens: int64 [batch, seq] of this rank, prompt then response then padding; [1, tokens of all rows] when packed.
        segments: tokens of each packed row, its padding and all context-parallel ranks included; None: not packed.
        mask: bool [batch, tokens], True on response tokens (of this rank).
        held: bool [response tokens of all ranks], row by row: which of them are this rank's.
        targets: int64 [response tokens], the valid ones row by row.
        positions: int64 [response tokens], index into the flattened [batch, seq] hidden states that predict them.
        weights: float32 [batch, tokens], 0 where masked.
        fields: name -> float32 [batch, tokens], 0 where masked.
        rows: which rows of the SequenceBatch these are.
    """

    tokens: torch.Tensor
    segments: list[int] | None
    mask: torch.Tensor
    held: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    weights: torch.Tensor
    fields: Mapping[str, torch.Tensor]
    rows: list[int]

    def to(self, device: torch.device) -> MicroBatch:
        """The same on `device`."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            mask=self.mask.to(device),
            held=self.held.to(device),
            targets=self.targets.to(device),
            positions=self.positions.to(device),
            weights=self.weights.to(device),
            fields={name: value.to(device) for name, value in self.fields.items()},
        )


def context_share(length: int, rank: int, size: int) -> torch.Tensor:
    """Positions of a row of `length` tokens that context-parallel `rank` of `size` holds, in order; int64.

    `length` is a multiple of 2 x size, unless size is 1.
    """
    if size == 1:
        return torch.arange(length)
    chunk = length // (2 * size)
    early, late = rank * chunk, (2 * size - 1 - rank) * chunk
    return torch.cat([torch.arange(early, early + chunk), torch.arange(late, late + chunk)])


def collate(
    batch: SequenceBatch,
    rows: Sequence[int],
    pad_id: int,
    size: MicroBatchSize | None = None,
    *,
    cp_rank: int = 0,
    cp_size: int = 1,
) -> MicroBatch:
    """One micro-batch of the given rows: padded to their own longest, or packed as `size` says.

    No rows give an idle micro-batch, as small as it can be: one row of padding that nothing is asked of.
    """
    size = size or MicroBatchSize(len(rows))
    if not rows:
        return _idle(batch, pad_id, size, cp_size)
    prompts = [batch.prompts[i] for i in rows]
    responses = [batch.responses[i] for i in rows]
    segments = _padded_lengths([len(p) + len(r) for p, r in zip(prompts, responses)], size)
    mask = torch.zeros(len(rows), max(len(r) for r in responses), dtype=torch.bool)
    tokens: list[torch.Tensor] = []
    held: list[torch.Tensor] = []
    targets: list[torch.Tensor] = []
    positions: list[torch.Tensor] = []
    start = 0
    for b, (prompt, response, length) in enumerate(zip(prompts, responses, segments)):
        end = len(prompt) + len(response)
        whole = torch.full((length,), pad_id, dtype=torch.long)
        whole[:end] = torch.tensor(prompt + response)
        own = context_share(length, cp_rank, cp_size)
        tokens.append(whole[own])
        place = torch.full((length,), -1)
        place[own] = torch.arange(start, start + len(own))
        # Response token t is predicted at the position before it.
        predicting = place[len(prompt) - 1 : end - 1]
        here = predicting >= 0
        mask[b, : len(response)] = here
        held.append(here)
        targets.append(torch.tensor(response)[here])
        positions.append(predicting[here])
        start += len(own)
    width = mask.shape[1]
    weights = _pad([batch.weights[i] for i in rows], width) if batch.weights else mask.float()
    return MicroBatch(
        tokens=torch.cat(tokens)[None] if size.packed else torch.stack(tokens),
        segments=segments if size.packed else None,
        mask=mask,
        held=torch.cat(held),
        targets=torch.cat(targets),
        positions=torch.cat(positions),
        weights=weights.masked_fill(~mask, 0.0),
        fields={
            name: _pad([values[i] for i in rows], width).masked_fill(~mask, 0.0)
            for name, values in batch.fields.items()
        },
        rows=list(rows),
    )


def _padded_lengths(lengths: Sequence[int], size: MicroBatchSize) -> list[int]:
    """Tokens each row takes, padding included."""
    if not size.packed:
        return [round_up(max(lengths), size.total_multiple)] * len(lengths)
    padded = [round_up(length, size.multiple) for length in lengths]
    padded[-1] += round_up(sum(padded), size.total_multiple) - sum(padded)
    return padded


def _idle(batch: SequenceBatch, pad_id: int, size: MicroBatchSize, cp_size: int) -> MicroBatch:
    none = torch.zeros(0, dtype=torch.long)
    return MicroBatch(
        tokens=torch.full((1, size.total_multiple // cp_size), pad_id, dtype=torch.long),
        segments=[size.total_multiple] if size.packed else None,
        mask=torch.zeros(1, 1, dtype=torch.bool),
        held=torch.zeros(0, dtype=torch.bool),
        targets=none,
        positions=none,
        weights=torch.zeros(1, 1),
        fields={name: torch.zeros(1, 1) for name in batch.fields},
        rows=[],
    )


def _pad(rows: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    out = torch.zeros(len(rows), width, dtype=torch.float32)
    for b, row in enumerate(rows):
        out[b, : len(row)] = row
    return out
