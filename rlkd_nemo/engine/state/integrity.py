"""Is a checkpoint on disk what was written? Size and CRC-32 of every file, kept in its meta.

Each rank checks the files that its number is in, main the rest, so that the work is shared as the writing was. CRC-32
finds truncation and flipped bits, and costs a fraction of writing the same bytes (benchmarks/checkpoint.py measures
it), so that no file is too large for it; it is no proof against someone who wants to deceive.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from rlkd_nemo.engine.state.retention import META
from rlkd_nemo.engine.state.storage import together
from rlkd_nemo.errors import CheckpointError, DamagedCheckpointError

_BLOCK = 1 << 22
_OF_RANK = re.compile(r"__(\d+)_\d+\.distcp")


def fingerprints(directory: Path, what: str, group: dist.ProcessGroup | None = None) -> dict[str, list[int]]:
    """`{file: [bytes, CRC-32]}` of all files there but the meta. All ranks call; same result on each.

    Raises: CheckpointError beginning with `what`, on every rank.
    """
    mine = together(
        lambda: {p.name: _fingerprint(p) for p in directory.iterdir() if p.name != META and _is_mine(p.name)},
        what,
        group,
    )
    parts: list[dict[str, list[int]]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, mine, group=group)
    return {name: values for part in parts for name, values in sorted(part.items())}


def check(directory: Path) -> None:
    """All ranks call. Raises: DamagedCheckpointError on every rank naming what is missing, cut or changed.

    A checkpoint of an earlier version of this package, which kept no sums, passes.
    """
    try:
        together(lambda: _check(directory), f"{directory} cannot be read")
    except CheckpointError as err:
        raise DamagedCheckpointError(str(err)) from err


def _check(directory: Path) -> None:
    # Whether the meta describes a format we know, and the model we want, is asked elsewhere: that is no damage.
    meta: Mapping[str, Any] = json.loads((directory / META).read_text())
    wrong = []
    for name, (size, crc) in meta.get("files", {}).items():
        if not _is_mine(name):
            continue
        path = directory / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif (found := path.stat().st_size) != size:
            wrong.append(f"{name} has {found} bytes, wanted {size}")
        elif _fingerprint(path)[1] != crc:
            wrong.append(f"{name} has other contents than were written")
    if wrong:
        raise OSError("; ".join(wrong))


def _is_mine(name: str) -> bool:
    match = _OF_RANK.fullmatch(name)
    return (int(match[1]) % dist.get_world_size() if match else 0) == dist.get_rank()


def _fingerprint(path: Path) -> list[int]:
    crc = size = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return [size, crc]
