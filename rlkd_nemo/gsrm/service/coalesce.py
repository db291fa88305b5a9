"""Equal work in flight is done once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from rlkd_nemo.errors import ServiceError

Value = TypeVar("Value")


class Coalescer(Generic[Value]):
    """Callers with equal keys share one task. It is cancelled when none of them waits any more."""

    def __init__(self) -> None:
        self._tasks: dict[str, tuple[asyncio.Task[Value], list[None]]] = {}

    async def get(self, key: str, make: Callable[[], Awaitable[Value]]) -> Value:
        """The result of `make`, or of an equal call in flight.

        A failure of somebody else's call may be due to their earlier deadline: then it is made anew. Raises what this
        caller's own `make` raises.
        """
        while True:
            own = key not in self._tasks
            if own:
                task: asyncio.Task[Value] = asyncio.ensure_future(_run(make))
                self._tasks[key] = task, []
            task, waiting = self._tasks[key]
            waiting.append(None)
            try:
                return await asyncio.shield(task)
            except ServiceError:
                if own:
                    raise
            finally:
                waiting.pop()
                if task.done() or not waiting:
                    task.cancel()
                    if self._tasks.get(key, (None,))[0] is task:
                        del self._tasks[key]


async def _run(make: Callable[[], Awaitable[Value]]) -> Value:
    return await make()
