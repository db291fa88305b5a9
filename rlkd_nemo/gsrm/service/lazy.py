"""The prefix rule on a decomposition that is still being written, and is stopped where nothing more can count.

Serves the prefix alignment with one reference, norm teacher or none, and a verdict a question: there only a meta
mismatch ends the match, so the generation is cancelled at the first mismatching meta line, or when the reference's last
step is compared. The reward is the eager one: the same questions get the same verdicts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from rlkd_nemo.gsrm import alignment
from rlkd_nemo.gsrm.alignment import Question, StructureResult, Verdict
from rlkd_nemo.gsrm.service.decomposer import Decomposition
from rlkd_nemo.gsrm.service.partial import NoSuchStep, PartialSteps
from rlkd_nemo.gsrm.stream import Event
from rlkd_nemo.types import Step

Ask = Callable[[Question], Awaitable[bool]]
Stream = Callable[[Callable[[list[Event]], None]], Coroutine[Any, Any, Decomposition]]


@dataclass(frozen=True)
class LazyResult:
    """A structure result, the student's steps as far as they were written, and whether that is all of them.

    `decomposition` is the model's whole reply, None when it was cancelled.
    """

    result: StructureResult
    student: tuple[Step, ...]
    decomposition: Decomposition | None


async def structure_reward(stream: Stream, teacher: Sequence[Step], ask: Ask, norm: str) -> LazyResult:
    """Steps are judged as they come, in order; a step's question and answer while the next step is being written.

    Args: stream: starts the generation, handing over events; cancelled to stop it.   ask: a verdict.
    Raises: what `stream` raises where its failure matters, and what `ask` raises.
    """
    partial = PartialSteps()

    async def generate() -> Decomposition:
        try:
            decomposition = await stream(partial.add)
        except BaseException as err:
            partial.end(err)
            raise
        partial.end()
        return decomposition

    generation = asyncio.ensure_future(generate())
    solving: list[asyncio.Task[tuple[bool | None, bool | None]]] = []
    mismatch: Verdict | None = None
    try:
        for index, theirs in enumerate(teacher):
            try:
                meta = await partial.field(index, "meta")
            except NoSuchStep:
                break
            if not (theirs.meta and meta and await ask(Question("meta", theirs.meta, meta))):
                mismatch = Verdict(index, index, False)
                break
            solving.append(asyncio.ensure_future(_solve(partial, index, theirs, ask)))
        if mismatch is not None:
            await _stop(generation)  # the fields of earlier steps are all there
        answers = await asyncio.gather(*solving)
    finally:
        # Also where something failed: nobody wants the rest.
        complete = partial.complete
        await _stop(*solving, generation)
    verdicts = [Verdict(index, index, True, *answer) for index, answer in enumerate(answers)]
    verdicts += [mismatch] if mismatch is not None else []
    student = partial.steps()
    weights = alignment.prefix_weights(verdicts, len(student), len(teacher))
    return LazyResult(
        alignment.result_of(verdicts, weights, len(student), len(teacher), norm),
        tuple(student),
        generation.result() if complete else None,
    )


async def _solve(partial: PartialSteps, index: int, theirs: Step, ask: Ask) -> tuple[bool | None, bool | None]:
    """As `alignment.compare_solving`, each part as soon as it is there."""

    async def part(kind: str, teacher: str | None) -> bool | None:
        if not teacher:
            return None
        mine = await partial.field(index, kind)
        return bool(mine) and await ask(Question(kind, teacher, mine or ""))

    parts = [
        asyncio.ensure_future(part("question", theirs.question)),
        asyncio.ensure_future(part("answer", theirs.answer)),
    ]
    try:
        question, answer = await asyncio.gather(*parts)
    finally:
        await _stop(*parts)
    return question, answer


async def _stop(*tasks: asyncio.Task[Any]) -> None:
    """Cancel and wait until all are over; what they raised is not wanted any more."""
    for task in tasks:
        task.cancel()  # every one before the waiting, which may be cancelled in its turn
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()
