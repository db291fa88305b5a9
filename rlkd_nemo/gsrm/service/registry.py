"""References under an id, so that a training run sends each text once and not with every rollout."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections import OrderedDict
from pathlib import Path

log = logging.getLogger(__name__)
IN_MEMORY = 2_000  # entries a process keeps; a few ten KB each


class ReferenceRegistry:
    """One file an id, so that a restarted server still knows it; the id is the hash of problem and texts.

    Args: directory: created with the first entry.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._seen: OrderedDict[str, tuple[str, tuple[str, ...]]] = OrderedDict()

    def add(self, problem: str, references: tuple[str, ...]) -> str:
        """Keep the texts. Returns their id."""
        text = json.dumps([problem, list(references)])
        reference_id = hashlib.sha256(text.encode()).hexdigest()[:32]
        path = self._path(reference_id)
        if reference_id not in self._seen and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{uuid.uuid4().hex}.tmp")
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        self._keep(reference_id, (problem, references))
        return reference_id

    def find(self, reference_id: str) -> tuple[str, tuple[str, ...]] | None:
        """(problem, texts) of an id; None when it was never added."""
        if reference_id in self._seen:
            self._seen.move_to_end(reference_id)
            return self._seen[reference_id]
        if len(reference_id) != 32 or not set(reference_id) <= set("0123456789abcdef"):
            return None  # no id of ours, and no path out of the directory
        try:
            problem, references = json.loads(self._path(reference_id).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as err:
            log.warning("reference %s is damaged (%s): it has to be sent again", reference_id, err)
            self._path(reference_id).unlink(missing_ok=True)
            return None
        self._keep(reference_id, (problem, tuple(references)))
        return self._seen[reference_id]

    def _path(self, reference_id: str) -> Path:
        return self.directory / "ids" / reference_id[:2] / f"{reference_id}.json"

    def _keep(self, reference_id: str, entry: tuple[str, tuple[str, ...]]) -> None:
        self._seen[reference_id] = entry
        self._seen.move_to_end(reference_id)
        while len(self._seen) > IN_MEMORY:
            self._seen.popitem(last=False)
