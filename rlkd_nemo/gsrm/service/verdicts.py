"""Verdicts by content: in memory, and in a file that processes share."""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from collections import OrderedDict
from pathlib import Path

from rlkd_nemo.errors import InputError

log = logging.getLogger(__name__)
_BUSY_S = 0.5  # a cache must not hold up what it is there to speed up


def key(*parts: str) -> str:
    """Hash of everything that a verdict depends on."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class VerdictCache:
    """The `entries` verdicts used last, over an SQLite file on a local disk (None: memory only).

    Args: path: created if missing; several processes may use it at once.
    Raises: InputError when it is no such file.
    """

    def __init__(self, entries: int, path: str | Path | None = None) -> None:
        self._entries, self._path = entries, path
        self._seen: OrderedDict[str, bool] = OrderedDict()
        self._file: sqlite3.Connection | None = None
        if path is not None:
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                self._file = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
                self._file.execute("PRAGMA journal_mode=WAL")
                self._file.execute("PRAGMA synchronous=NORMAL")
                self._file.execute(
                    "CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, same INTEGER) WITHOUT ROWID"
                )
            except (sqlite3.Error, OSError) as err:
                raise InputError(
                    f"gsrm.llm.verdicts={path} cannot be used ({err}); wanted a file on a local disk, or null"
                ) from err

    def get(self, name: str) -> bool | None:
        """The verdict, None where there is none yet."""
        if name in self._seen:
            self._seen.move_to_end(name)
            return self._seen[name]
        if self._file is not None:
            try:
                row = self._file.execute("SELECT same FROM verdicts WHERE key = ?", (name,)).fetchone()
            except sqlite3.Error as err:
                self._give_up(err)
                return None
            if row is not None:
                self._keep(name, bool(row[0]))
                return bool(row[0])
        return None

    def put(self, name: str, same: bool) -> None:
        """Keep a verdict."""
        self._keep(name, same)
        if self._file is not None:
            try:
                self._file.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", (name, int(same)))
            except sqlite3.OperationalError as err:
                if "locked" not in str(err):
                    self._give_up(err)  # a busy file only misses one entry
            except sqlite3.Error as err:
                self._give_up(err)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _keep(self, name: str, same: bool) -> None:
        self._seen[name] = same
        self._seen.move_to_end(name)
        if len(self._seen) > self._entries:
            self._seen.popitem(last=False)

    def _give_up(self, err: sqlite3.Error) -> None:
        if "locked" in str(err):
            return
        log.warning("gsrm.llm.verdicts=%s fails (%s): verdicts are kept in memory only from now on", self._path, err)
        self.close()
