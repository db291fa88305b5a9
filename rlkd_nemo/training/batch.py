"""Ragged sequences in; padded micro-batches out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from rlkd_nemo.errors import ShapeError


@dataclass
class SequenceBatch:
    """Sequences of one update with their per-token data, ragged, on the host.

    Attributes:
        prompts / responses: token ids; a response is never empty.
        weights: per row, float [len(response)]: the weight of each token in the loss of the whole update.
        fields: name -> per row, float [len(response)]: whatever the objective needs (old_log_probs, advantages, ...).
    """

    prompts: list[list[int]]
    responses: list[list[int]]
    weights: list[torch.Tensor] = field(default_factory=list)
    fields: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = [i for i, response in enumerate(self.responses) if not response]
        if wrong or len(self.prompts) != len(self.responses):
            raise ShapeError(
                f"{len(self.prompts)} prompts, {len(self.responses)} responses, {len(wrong)} of them empty; "
                "wanted one non-empty response for each prompt"
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
    """Right-padded tensors of a few rows.

    Attributes:
        tokens: int64 [batch, seq], prompt then response then padding.
        mask: bool [batch, tokens], True on response tokens.
        targets: int64 [response tokens], the valid ones row by row.
        positions: int64 [response tokens], index into the flattened [batch, seq] hidden states that predict them.
        weights: float32 [batch, tokens], 0 where masked.
        fields: name -> float32 [batch, tokens], 0 where masked.
        rows: which rows of the SequenceBatch these are.
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    weights: torch.Tensor
    fields: Mapping[str, torch.Tensor]
    rows: list[int]

    def to(self, device: torch.device) -> MicroBatch:
        """The same on `device`."""
        return MicroBatch(
            self.tokens.to(device),
            self.mask.to(device),
            self.targets.to(device),
            self.positions.to(device),
            self.weights.to(device),
            {name: value.to(device) for name, value in self.fields.items()},
            self.rows,
        )


def share(lengths: Sequence[int], rank: int, size: int) -> list[int]:
    """Rows of data-parallel `rank`: sorted by length and dealt in turn, so that each rank has as much to do.

    Deterministic; every row goes to exactly one rank.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    # Snake order: after a long-first round comes a short-first one.
    return [row for turn, row in enumerate(order) if _snake(turn, size) == rank]


def _snake(turn: int, size: int) -> int:
    lap, place = divmod(turn, size)
    return place if lap % 2 == 0 else size - 1 - place


def micro_batches(
    batch: SequenceBatch,
    rows: Sequence[int],
    size: int,
    pad_id: int,
    *,
    number: int | None = None,
    multiple: int = 1,
) -> Iterator[MicroBatch]:
    """Micro-batches of at most `size` of the given rows, similar lengths together.

    Args:
        number: yield exactly so many (all data-parallel ranks the same number); those past the rows are empty in
            effect: one row of weight 0.
        multiple: as in `collate`.
    """
    ordered = sorted(rows, key=lambda i: (-(len(batch.prompts[i]) + len(batch.responses[i])), i))
    made = 0
    for start in range(0, len(ordered), size):
        yield collate(batch, ordered[start : start + size], pad_id, multiple=multiple)
        made += 1
    while number is not None and made < number:
        idle = collate(batch, [0], pad_id, multiple=multiple)
        idle.mask[:] = False
        idle.weights.zero_()
        idle.targets, idle.positions, idle.rows = idle.targets[:0], idle.positions[:0], []
        for value in idle.fields.values():
            value.zero_()
        yield idle
        made += 1


def collate(batch: SequenceBatch, rows: Sequence[int], pad_id: int, *, multiple: int = 1) -> MicroBatch:
    """Pad the given rows to their own longest, rounded up to a multiple of `multiple` tokens."""
    prompts = [batch.prompts[i] for i in rows]
    responses = [batch.responses[i] for i in rows]
    seq = max(len(p) + len(r) for p, r in zip(prompts, responses))
    seq += -seq % multiple
    width = max(len(r) for r in responses)
    tokens = torch.full((len(rows), seq), pad_id, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    targets: list[int] = []
    positions: list[int] = []
    for b, (prompt, response) in enumerate(zip(prompts, responses)):
        end = len(prompt) + len(response)
        tokens[b, :end] = torch.tensor(prompt + response)
        mask[b, : len(response)] = True
        targets.extend(response)
        # Response token t is predicted at the position before it.
        positions.extend(range(b * seq + len(prompt) - 1, b * seq + end - 1))
    return MicroBatch(
        tokens=tokens,
        mask=mask,
        targets=torch.tensor(targets),
        positions=torch.tensor(positions),
        weights=_pad([batch.weights[i] for i in rows], width) if batch.weights else mask.float(),
        fields={name: _pad([values[i] for i in rows], width) for name, values in batch.fields.items()},
        rows=list(rows),
    )


def _pad(rows: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    out = torch.zeros(len(rows), width, dtype=torch.float32)
    for b, row in enumerate(rows):
        out[b, : len(row)] = row
    return out
