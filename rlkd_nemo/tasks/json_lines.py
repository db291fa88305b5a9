"""Files of JSON lines that users write: every line an object, and what is wrong with one said by its number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlkd_nemo.errors import InputError


def rows(path: Path, key: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Number (from 1) and object of each line that is not blank; in place of an object, the reason why it is none.

    One line at a time: a file may be larger than what a process should hold.
    Args: key: the setting that named the file, for messages.
    Raises: InputError when the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            # Lines end at line feeds only: texts may hold Unicode's other line separators as they are.
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _object(line)
    except OSError as err:
        raise InputError(f"{key}={str(path)!r} cannot be read ({err.strerror}); wanted a file of JSON lines") from err


def _object(line: bytes) -> dict[str, Any] | str:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as err:
        return f"no UTF-8 at byte {err.start + 1}"
    except (ValueError, RecursionError) as err:
        return f"no JSON ({err})"
    return row if isinstance(row, dict) else f"found {type(row).__name__}, wanted an object"
