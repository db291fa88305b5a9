"""The file that labels go to: each row is written as soon as it is there, so that what was paid for stays."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlkd_nemo.errors import BadReply, InputError
from rlkd_nemo.gsrm import dataset, schema
from rlkd_nemo.gsrm.dataset import DecompositionRow, Row

log = logging.getLogger(__name__)


class RowFile:
    """Rows of a file by their id, and more at its end. Half a line there, which a killed process leaves, is cut off.

    Raises: InputError and PromptFileError as `dataset.read` does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Row] = {row.id: row for row in _resume(path)}

    @property
    def decompositions(self) -> list[DecompositionRow]:
        """The rows that take a text apart."""
        return [row for row in self.rows.values() if isinstance(row, DecompositionRow)]

    def check(self, source_of: Callable[[Row], str]) -> None:
        """Raises InputError where a row is by another model, prompt or form than `source_of` names."""
        for row in self.rows.values():
            if row.source != source_of(row):
                raise InputError(
                    f"{self.path} has rows by {row.source!r}, and these settings would add some by {source_of(row)!r}; "
                    "wanted another gsrm.label.out"
                )

    def add(self, fields: dict[str, Any], form: schema.Form) -> Row:
        """Append a row. Raises BadReply where the fields, which a model has filled, are none."""
        try:
            row = dataset.parse(fields, form)
        except InputError as err:
            raise BadReply(f"the reply is no training row: {err}") from err
        with self.path.open("a", encoding="utf-8") as file:
            file.write(dataset.line(row))
        self.rows[row.id] = row
        return row


def _resume(path: Path) -> list[Row]:
    if not path.exists():
        return []
    whole, newline, torn = path.read_bytes().rpartition(b"\n")
    if torn:
        log.warning("%s: its last line is cut off in the middle; it is removed and asked for again", path)
        with path.open("r+b") as file:
            file.truncate(len(whole) + len(newline))
    return dataset.read(path, "gsrm.label.out") if whole.strip() else []
