"""summary.json: the run's result, for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlkd_nemo.errors import InputError
from rlkd_nemo.report.files import dumps, write_atomically


def write_summary(run_dir: str | Path, summary: Mapping[str, Any]) -> Path:
    """Write `summary` to run_dir/summary.json, whole or not at all. Non-finite numbers become null."""
    path = Path(run_dir) / "summary.json"
    write_atomically(path, dumps(summary, indent=2) + "\n")
    return path


def read_summary(run_dir: str | Path) -> dict[str, Any]:
    """The summary in `run_dir`; empty when there is none. Raises InputError when it is no JSON."""
    path = Path(run_dir) / "summary.json"
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}); remove it to start anew") from error
