"""Which rank takes which rows, and in which micro-batches. Every rank computes the same answer for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlkd_nemo.errors import ConfigError


@dataclass(frozen=True)
class MicroBatchSize:
    """What one micro-batch of one rank may hold.

    Attributes:
        sequences: at most so many rows; read where `tokens` is None.
        tokens: at most so many tokens, padding included; None: rows are counted instead.
        packed: rows lie end to end, so that their lengths add up; else each takes the length of the longest.
        multiple: each row's tokens are rounded up to a multiple of this (context parallelism cuts rows in chunks).
        total_multiple: the same for the row of tensors that results (sequence parallelism cuts that one).
        key: the setting behind `tokens`, for the error.
    """

    sequences: int
    tokens: int | None = None
    packed: bool = False
    multiple: int = 1
    total_multiple: int = 1
    key: str = "model.micro_batch_tokens"


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple that is not below `number`."""
    return -(-number // multiple) * multiple


def plan(lengths: Sequence[int], size: MicroBatchSize, ranks: int) -> list[list[list[int]]]:
    """Rows of each micro-batch of each data-parallel rank: plan[rank][micro-batch] -> rows.

    Every row is in exactly one; each rank has the same number of micro-batches, at least one, and those past its rows
    are empty lists. With a token budget each rank gets about as many tokens (longest row first to the rank with least:
    two ranks differ by no more than the longest row). Deterministic.

    Args: lengths: tokens of each row, prompt included.
    Raises: ConfigError when a row alone is over the budget; the same on every rank, before any waits for another.
    """
    if size.tokens is None:
        shares = [_longest_first(share(lengths, rank, ranks), lengths) for rank in range(ranks)]
        made = [[rows[i : i + size.sequences] for i in range(0, len(rows), size.sequences)] for rows in shares]
    else:
        padded = [round_up(length, size.multiple) for length in lengths]
        _refuse_longer(lengths, padded, size)
        made = [_within_budget(rows, padded, size) for rows in _balanced(padded, ranks)]
    number = max(1, *(len(parts) for parts in made))
    return [parts + [[] for _ in range(number - len(parts))] for parts in made]


def share(lengths: Sequence[int], rank: int, size: int) -> list[int]:
    """Rows of `rank`, each rank with as many: sorted by length and dealt in turn, so that the work is alike too.

    Deterministic; every row goes to exactly one rank.
    """
    # Snake order: after a long-first round comes a short-first one.
    order = _longest_first(range(len(lengths)), lengths)
    return [row for turn, row in enumerate(order) if _snake(turn, size) == rank]


def _snake(turn: int, size: int) -> int:
    lap, place = divmod(turn, size)
    return place if lap % 2 == 0 else size - 1 - place


def _longest_first(rows: Sequence[int], lengths: Sequence[int]) -> list[int]:
    return sorted(rows, key=lambda i: (-lengths[i], i))


def _capacity(size: MicroBatchSize) -> int:
    assert size.tokens is not None
    return size.tokens // size.total_multiple * size.total_multiple


def _refuse_longer(lengths: Sequence[int], padded: Sequence[int], size: MicroBatchSize) -> None:
    longest = max(range(len(lengths)), key=lambda i: padded[i], default=None)
    if longest is not None and padded[longest] > _capacity(size):
        rounded = "" if padded[longest] == lengths[longest] else f" ({padded[longest]} with its padding)"
        raise ConfigError(
            f"row {longest} has {lengths[longest]} tokens{rounded}, more than the {_capacity(size)} that "
            f"{size.key} allows a micro-batch; raise {size.key}, or lower model.encoder_seq_length"
        )


def _balanced(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Longest first, each to the rank with the fewest tokens so far (R. L. Graham's LPT rule)."""
    loads, shares = [0] * ranks, [[] for _ in range(ranks)]  # type: tuple[list[int], list[list[int]]]
    for row in _longest_first(range(len(lengths)), lengths):
        rank = loads.index(min(loads))
        shares[rank].append(row)
        loads[rank] += lengths[row]
    return shares


def _within_budget(rows: Sequence[int], lengths: Sequence[int], size: MicroBatchSize) -> list[list[int]]:
    """Rows, longest first, each into the first micro-batch that has room for it."""
    parts: list[list[int]] = []
    taken: list[int] = []
    capacity = _capacity(size)
    for row in rows:
        # Padded, a row costs as much as the longest of its micro-batch, which is the first.
        costs = [lengths[row] if size.packed else round_up(lengths[part[0]], size.total_multiple) for part in parts]
        room = next((i for i, cost in enumerate(costs) if taken[i] + cost <= capacity), None)
        if room is None:
            parts.append([row])
            taken.append(lengths[row] if size.packed else round_up(lengths[row], size.total_multiple))
        else:
            parts[room].append(row)
            taken[room] += costs[room]
    return parts
