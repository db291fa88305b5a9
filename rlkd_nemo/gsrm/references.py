"""Decomposed references on disk, so that each is decomposed once, whatever the number of rollouts, epochs and runs."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import logging
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, TypeVar

from rlkd_nemo.errors import InputError
from rlkd_nemo.gsrm.tree import Tree, merge
from rlkd_nemo.interfaces import Decomposer, Judge
from rlkd_nemo.types import Step

log = logging.getLogger(__name__)
Value = TypeVar("Value")
IN_MEMORY = 10_000  # entries a process keeps
_LOOK_AGAIN_S = 0.05  # at an entry that another process is making


class ReferenceStore:
    """One JSON file an entry, named by the hash of everything that its value depends on.

    Entries never change, so processes need no lock: two that miss at once write the same file, each by an atomic
    replacement. A file that cannot be read is computed anew, with a warning. Values are also kept in memory.

    Args: directory: created if missing.
    Raises: InputError when it cannot be created.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise InputError(
                f"gsrm.reference_store={directory} cannot be created ({err.strerror}); wanted a directory to write in"
            ) from err
        self._seen: dict[str, Any] = {}

    def steps(self, problem: str, text: str, decomposer: Decomposer) -> list[Step]:
        """Steps of a reference; decomposed now if never before. Raises what the decomposer raises, storing nothing."""
        return self._get(
            ["steps", decomposer.version, problem, text],
            make=lambda: decomposer.decompose(problem, text),
            save=_plain_steps,
            load=_steps_of,
        )

    def tree(self, problem: str, references: Sequence[Sequence[Step]], judge: Judge) -> Tree:
        """The references merged, as the judge of this name merges them. Raises what the judge raises."""
        return self._get(
            ["tree", judge.name, problem, [_plain_steps(steps) for steps in references]],
            make=lambda: merge(references, judge, problem),
            save=lambda tree: tree,
            load=lambda value: _tree_of(value, references),
        )

    async def steps_from(
        self, version: str, problem: str, text: str, make: Callable[[], Awaitable[Sequence[Step]]]
    ) -> list[Step]:
        """`steps` for a decomposer that takes its time; shares its entries with `steps` of the same version.

        Made once even when several processes want it at once: the others wait for the one that makes it, and one of
        them takes over if that one dies. Raises what `make` raises, storing nothing.
        """
        return await self._get_later(["steps", version, problem, text], make, _plain_steps, _steps_of)

    def has_steps(self, version: str, problem: str, text: str) -> bool:
        """Is the reference here already, decomposed by this version? A damaged file counts until it is read."""
        key = hashlib.sha256(json.dumps(["steps", version, problem, text]).encode()).hexdigest()
        return key in self._seen or (self.directory / key[:2] / f"{key}.json").exists()

    async def tree_from(
        self, name: str, problem: str, references: Sequence[Sequence[Step]], make: Callable[[], Awaitable[Tree]]
    ) -> Tree:
        """`tree` for a judge, of this name, that takes its time."""
        parts = ["tree", name, problem, [_plain_steps(steps) for steps in references]]
        return await self._get_later(parts, make, lambda tree: tree, lambda value: _tree_of(value, references))

    async def _get_later(
        self,
        parts: list[Any],
        make: Callable[[], Awaitable[Any]],
        save: Callable[[Any], Any],
        load: Callable[[Any], Value],
    ) -> Value:
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        if key in self._seen:
            return self._seen[key]  # type: ignore[no-any-return]
        path = self.directory / key[:2] / f"{key}.json"
        value = self._read(path, key, load)
        if value is None:
            async with _claimed(path.with_suffix(".lock")):
                value = self._read(path, key, load)  # made by another process meanwhile
                if value is None:
                    made = save(await make())
                    _write(path, json.dumps({"key": key, "kind": parts[0], "by": parts[1], "value": made}))
                    value = load(made)
        self._keep(key, value)
        return value

    def _keep(self, key: str, value: Any) -> None:
        if len(self._seen) >= IN_MEMORY:
            self._seen.pop(next(iter(self._seen)))  # the oldest
        self._seen[key] = value

    def _get(
        self,
        parts: list[Any],
        make: Callable[[], Value],
        save: Callable[[Value], Any],
        load: Callable[[Any], Value],
    ) -> Value:
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        if key not in self._seen:
            path = self.directory / key[:2] / f"{key}.json"
            value = self._read(path, key, load)
            if value is None:
                value = make()
                _write(path, json.dumps({"key": key, "kind": parts[0], "by": parts[1], "value": save(value)}))
            self._keep(key, value)
        return self._seen[key]

    def _read(self, path: Path, key: str, load: Callable[[Any], Value]) -> Value | None:
        try:
            entry = json.loads(path.read_bytes())
            if entry["key"] != key:
                raise ValueError(f"it holds key {str(entry['key'])[:12]}")
            return load(entry["value"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, RecursionError) as err:
            log.warning("stored reference %s is damaged (%s: %s): it is made anew", path, type(err).__name__, err)
            return None


@asynccontextmanager
async def _claimed(path: Path) -> AsyncIterator[None]:
    """One process at a time, while it lives: the kernel drops the lock of one that is killed.

    Where the file system has no locks, two may do the same work; entries stay whole, each being written by replacement.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with await _locked(path):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


async def _locked(path: Path) -> IO[str]:
    """The open file under `path`, once the lock on it is ours."""
    while True:
        lock = path.open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who had it before has removed the file: a lock on that one keeps nobody out.
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                return lock
        except (BlockingIOError, FileNotFoundError):
            pass
        except OSError as err:
            log.warning("%s: no locks there (%s); a reference may be decomposed twice", path.parent, err)
            return lock
        lock.close()
        await asyncio.sleep(_LOOK_AGAIN_S)


def _plain_steps(steps: Sequence[Step]) -> list[dict[str, Any]]:
    return [asdict(step) for step in steps]


def _steps_of(value: Any) -> list[Step]:
    steps = [Step(**fields) for fields in value]
    for step in steps:
        if not isinstance(step.meta, str) or not all(
            isinstance(f, (str, type(None))) for f in (step.question, step.answer)
        ):
            raise TypeError(f"{step} is no step")
    return steps


def _tree_of(value: Any, references: Sequence[Sequence[Step]]) -> Tree:
    if [len(path) for path in value] != [len(steps) for steps in references]:
        raise ValueError("its paths are not as long as the references")
    return [[int(node) for node in path] for path in value]


def _write(path: Path, text: str) -> None:
    """Whole or not at all, under a temporary name of its own: several processes may write the same entry."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem[:12]}-{uuid.uuid4().hex}.tmp")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
