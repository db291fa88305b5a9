"""How a step of ranks ended, from what each of them left. No torch."""

from __future__ import annotations

import json
from pathlib import Path

from rlkd_nemo.errors import EXIT_ERROR
from rlkd_nemo.launch.local import Ended, verdict
from rlkd_nemo.launch.rank import BEAT


def judge(folder: Path, tasks: int, code: int) -> int:
    """Say on stderr what went wrong, the cause first, and return the exit code that the ranks agree on.

    Args:
        folder: where the ranks reported.
        code: what `srun` ended with; counts where the ranks say that all went well.
    """
    ended = [_end(folder, rank) for rank in range(tasks)]
    if not code or all(end.code == 0 for end in ended):
        return code
    return verdict(ended)


def _end(folder: Path, rank: int) -> Ended:
    try:
        words = json.loads((folder / f"{rank}.json").read_text())
    except FileNotFoundError:
        message = f"rank {rank} was ended without a word{_last_words(folder, rank)}"
        return Ended(rank, EXIT_ERROR, False, message, True, 0.0)
    return Ended(rank, words["code"], False, words["message"], words["deliberate"], words["time"])


def _last_words(folder: Path, rank: int) -> str:
    if not (folder / f"{rank}.ready").exists():
        return ", before it was ready"
    try:
        beat = json.loads((folder / f"{rank}{BEAT}").read_text())
    except FileNotFoundError:
        return ""
    lines = "".join(f"\n  {line}" for line in beat["log"])
    return f", in {beat['stage']}" + (f"; its last log lines:{lines}" if lines else "")
