"""Work on the host that ranks share: each does a part, all get the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from rlkd_nemo.errors import RlkdError
from rlkd_nemo.lifecycle.watchdog import mark

Item = TypeVar("Item")
Result = TypeVar("Result")


def world() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) without process groups."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def map_shared(function: Callable[[list[Item]], list[Result]], items: Sequence[Item]) -> list[Result]:
    """`function(items)`, one result an item, every rank doing each world-size-th item. Same result on every rank."""
    rank, size = world()
    mine = function(list(items[rank::size]))
    mark(f"its share of {len(items)}")
    if size == 1:
        return mine
    parts: list = [None] * size
    dist.all_gather_object(parts, mine)
    return [parts[i % size][i // size] for i in range(len(items))]


def from_main(function: Callable[[], Result]) -> Result:
    """What `function()` gives on rank 0, on every rank; an error of ours that it raises there is raised on all."""
    rank, size = world()
    if size == 1:
        return function()
    told: list = [None, None]
    if rank == 0:
        try:
            told[0] = function()
        except RlkdError as err:
            told[1] = err
    dist.broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    return told[0]


def agree(flag: bool, device: torch.device | None = None) -> bool:
    """True on every rank if it is true on any: one all-reduce."""
    if world()[1] == 1:
        return flag
    value = torch.tensor([int(flag)], device=device or "cpu")
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value.item())
