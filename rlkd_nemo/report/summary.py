"""summary.json: the run's result, for programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlkd_nemo.report.files import dumps, write_atomically


def write_summary(run_dir: str | Path, summary: Mapping[str, Any]) -> Path:
    """Write `summary` to run_dir/summary.json, whole or not at all. Non-finite numbers become null."""
    path = Path(run_dir) / "summary.json"
    write_atomically(path, dumps(summary, indent=2) + "\n")
    return path
