"""Durations as NeMo writes them: days, hours, minutes, seconds."""

from __future__ import annotations

import re

_DURATION = re.compile(r"(\d+):(\d{1,2}):(\d{1,2}):(\d{1,2})")


def seconds(text: str) -> float:
    """`DD:HH:MM:SS` in seconds. Raises: ValueError when `text` is written otherwise or is no time at all."""
    match = _DURATION.fullmatch(text)
    days, hours, minutes, rest = map(int, match.groups()) if match else (0, 24, 60, 60)
    if hours > 23 or minutes > 59 or rest > 59:
        raise ValueError(f"{text!r} is no duration; wanted DD:HH:MM:SS, such as 00:03:50:00")
    total = ((days * 24 + hours) * 60 + minutes) * 60 + rest
    if total == 0:
        raise ValueError(f"{text!r} is no time at all; wanted more than 00:00:00:00, or null for no limit")
    return float(total)
