"""A sharded state to and from disk in Megatron's `torch_dist` format, failing on every rank or on none.

`dist_checkpointing.save` forks a process for each file and starts a manager process by importing the main module
again; an error on the main rank outside that writer leaves the other ranks waiting. So its public pieces are called
here one by one, with PyTorch's in-process writer between them. `dist_checkpointing.load` reads the result.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing import ShardedObject, ShardedTensor
from megatron.core.dist_checkpointing import load as dist_load
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException

from rlkd_nemo.errors import CheckpointError

__all__ = ["Prepared", "ShardedObject", "prepare_state", "read_state", "sync_to_disk", "together", "write_state"]


def together(action: Callable[[], Any], what: str, group: dist.ProcessGroup | None = None) -> Any:
    """Run `action` on every rank; if it fails on any, all raise the same CheckpointError.

    Args: group: of all ranks, through which they agree; a thread beside the training needs its own.
    The action may contain collectives only if a failure inside them reaches all ranks.
    """
    result, failure = None, None
    try:
        result = action()
    except (Exception, CheckpointException) as err:  # noqa: BLE001 (raised again below, everywhere)
        failure = err
    reports: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(reports, None if failure is None else _report(failure), group=group)
    failed = list(dict.fromkeys(report for report in reports if report is not None))
    if failed:
        raise CheckpointError(f"{what}: {'; '.join(failed)}") from failure
    return result


def _report(failure: BaseException) -> str:
    """One line a cause. PyTorch hands the failures of all ranks to each of them, with their tracebacks."""
    if isinstance(failure, CheckpointException):
        return "; ".join(f"rank {rank}: {type(err).__name__}: {err}" for rank, (err, _) in failure.failures.items())
    return f"rank {dist.get_rank()}: {type(failure).__name__}: {failure}"


@dataclass(frozen=True)
class Prepared:
    """What one rank has to write: PyTorch's form of its shards, and the plain values as bytes (the same on all)."""

    shards: dict[str, Any]
    common: bytes


def prepare_state(state: dict[str, Any], *, copy: bool) -> Prepared:
    """Ready `state`, ShardedTensors, ShardedObjects and plain values, for `write_state`. All ranks call.

    Args: copy: take tensors into host memory, so that training may go on while they are written.
    """
    sharded, common = save_preprocess(state, validate_access_integrity=True)
    sharded, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, keep_only_main_replica=True)
    if copy:
        for part in (part for parts in sharded.values() for part in parts):
            if isinstance(part, ShardedTensor):
                part.data = part.data.detach().to("cpu", copy=True)
    # Through memory: PyTorch's own file writer would hide why the system refused.
    buffer = io.BytesIO()
    torch.save(common, buffer)
    return Prepared(mcore_to_pyt_state_dict(sharded, is_loading=False), buffer.getvalue())


def write_state(state: Prepared, directory: Path, what: str, group: dist.ProcessGroup | None = None) -> None:
    """Write into an existing empty directory.

    Raises: CheckpointError beginning with `what`, on every rank.
    """
    together(lambda: _write_common(state.common, directory), what, group)
    together(
        lambda: checkpoint.save(
            state.shards,
            # One thread: with more, an exception in any but the first is lost and the file silently short.
            storage_writer=checkpoint.FileSystemWriter(directory, thread_count=1, overwrite=False),
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
            process_group=group,
        ),
        what,
        group,
    )


def _write_common(common: bytes, directory: Path) -> None:
    if dist.get_rank() == 0:
        (directory / COMMON_STATE_FNAME).write_bytes(common)
        save_config(CheckpointingConfig("torch_dist", 1), str(directory))


def read_state(template: dict[str, Any], directory: Path, what: str) -> dict[str, Any]:
    """`template` filled from disk, whatever layout wrote it, merged with the plain values that were written.

    Raises: CheckpointError beginning with `what`, on every rank.
    """
    return together(lambda: dist_load(template, str(directory)), what)


def sync_to_disk(path: Path) -> None:
    """fsync a file, or a directory's entries."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
