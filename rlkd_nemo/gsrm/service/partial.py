"""A student's steps while they are being written: whoever needs a field waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rlkd_nemo.gsrm.stream import Event, StepEnd
from rlkd_nemo.types import Step


class NoSuchStep(Exception):
    """The decomposition has ended before this step."""


class PartialSteps:
    """Fields of a stream, filled by `add` and closed by `end`."""

    def __init__(self) -> None:
        self._fields: dict[tuple[int, str], str | None] = {}
        self._steps: list[Step] = []
        self._error: BaseException | None = None
        self._ended = False
        self._changed = asyncio.Event()

    def add(self, events: Sequence[Event]) -> None:
        """What a reader has found."""
        for event in events:
            if isinstance(event, StepEnd):
                self._steps.append(event.step)
            else:
                self._fields[event.step, event.name] = event.value
        self._wake()

    def end(self, error: BaseException | None = None) -> None:
        """No more comes; with an error, whoever still waits gets it."""
        self._ended, self._error = True, error
        self._wake()

    @property
    def complete(self) -> bool:
        """All of the student's steps are here."""
        return self._ended and self._error is None

    def steps(self) -> list[Step]:
        """The steps so far, one whose end has not come with the fields that it has."""
        number = len(self._steps)
        if (number, "meta") not in self._fields:
            return list(self._steps)
        fields = {name: self._fields.get((number, name)) for name in ("question", "answer")}
        return [*self._steps, Step(self._fields[number, "meta"] or "", **fields)]

    async def field(self, index: int, name: str) -> str | None:
        """A field as soon as it is complete, None when its step has none.

        Raises: NoSuchStep; the error that the stream ended with, but only where the field is not there.
        """
        while True:
            if (index, name) in self._fields:
                return self._fields[index, name]
            if index < len(self._steps):
                return None
            if self._error is not None:
                raise self._error
            if self._ended:
                raise NoSuchStep
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
