"""Files that are whole or absent, and JSON that any reader accepts."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text`; a process killed half-way leaves the old file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.tmp")
    # A lone surrogate (half a character, sampled) has no UTF-8; its backslash form is what JSON writes as well.
    with partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def plain(value: Any) -> Any:
    """`value` as strict JSON: None for numbers that are not finite, mappings for dataclasses, else an object's text."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value)


def dumps(value: Any, **options: Any) -> str:
    """Strict JSON of `plain(value)`."""
    return json.dumps(plain(value), allow_nan=False, ensure_ascii=False, **options)
