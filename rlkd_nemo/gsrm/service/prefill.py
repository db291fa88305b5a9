"""References decomposed ahead of a run, into the store that server and trainers read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from rlkd_nemo import tasks
from rlkd_nemo.config.schema import Config, Prefill
from rlkd_nemo.errors import BadReply, ConfigError, Preempted, ServiceError
from rlkd_nemo.gsrm.service.run import store_directory
from rlkd_nemo.gsrm.service.scoring import Scoring
from rlkd_nemo.gsrm.service.sweep import sweep
from rlkd_nemo.lifecycle.signals import stop_requested
from rlkd_nemo.report.files import dumps, write_atomically
from rlkd_nemo.tasks.prompts import Prompts
from rlkd_nemo.types import Problem, Step

log = logging.getLogger(__name__)
Reference = tuple[Problem, int]  # a problem and the index of one of its teacher paths


class Store(Protocol):
    """What is asked of `Scoring`."""

    async def decompose(self, problem: str, text: str, domain: str | None = None) -> list[Step]:
        """Steps, kept."""

    def stored(self, problem: str, text: str, domain: str | None = None) -> bool:
        """Kept already?"""


def run(cfg: Config) -> None:
    """Decompose every reference that is not in the store, and write those without steps to rejected_references.jsonl.

    Raises: ConfigError for a task without end and without `gsrm.prefill.num_problems`; Preempted when told to stop (the
    same command goes on); ServiceError at the end when some could not be had (the same command asks for them again).
    """
    references = list(all_references(cfg))
    # The notation as the server has it: it is part of the store's keys.
    notation = tasks.notation(cfg.task)
    rejects = Path(cfg.exp_manager.exp_dir) / "rejected_references.jsonl"

    async def main() -> dict[str, int]:
        core = Scoring(cfg.gsrm, store_directory(cfg), notation, per_s=cfg.gsrm.prefill.per_s)
        try:
            await core.start()
            return await fill(core, references, cfg.gsrm.prefill, rejects, stop_requested)
        finally:
            await core.aclose()

    counts = asyncio.run(main())
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    log.info("%d references: %s; rejects are in %s", len(references), told, rejects)
    if counts["left"]:
        raise Preempted(f"stopped: {told}; the same command goes on")
    if counts["failed"]:
        raise ServiceError(
            f"{counts['failed']} of {len(references)} references could not be had ({told}); run it again"
        )


def all_references(cfg: Config) -> Iterator[Reference]:
    """Each teacher path that training and validation of this config would ask for, once."""
    first = cfg.gsrm.reference_mode == "first"
    return teacher_paths(cfg, cfg.gsrm.prefill.num_problems, "gsrm.prefill.num_problems", first_only=first)


def teacher_paths(cfg: Config, number: int | None, key: str, first_only: bool = False) -> Iterator[Reference]:
    """Each teacher path of `number` problems of a task, or of all in a prompt file, once.

    Raises: ConfigError, naming `key`, for a task without end and no number.
    """
    task = tasks.build(cfg.task)
    if number is None and not isinstance(task, Prompts):
        raise ConfigError(f"{key} is not set, but this task has no end; wanted a number of problems")
    if isinstance(task, Prompts):
        problems = [problem for split in task.problems.values() for problem in split][:number]
    else:
        level = cfg.data.train_difficulty
        problems = task.generate("train", cfg.data.shuffle_seed, level, number or 0)
        problems += task.generate("validation", 0, cfg.data.validation_difficulty or level, cfg.validation.num_problems)
    seen: set[tuple[str, str]] = set()
    for problem in problems:
        paths = problem.teacher_paths[:1] if first_only else problem.teacher_paths
        for index, path in enumerate(paths):
            if (problem.prompt, path) not in seen:
                seen.add((problem.prompt, path))
                yield problem, index


async def fill(
    core: Store,
    references: list[Reference],
    settings: Prefill,
    rejects: Path,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, int]:
    """Decompose what is not stored, with progress. Returns: references there before, made, rejected, failed and left.

    Rejected: the model answered, but without a step, or not in its form. Failed: nobody answered.
    """

    def args(reference: Reference) -> tuple[str, str, str | None]:
        problem, index = reference
        return problem.prompt, problem.teacher_paths[index], domain_of(problem)

    async def ask(reference: Reference) -> None:
        if not await core.decompose(*args(reference)):
            raise BadReply("no step was found")

    swept = await sweep(
        references,
        ask,
        "references",
        concurrency=settings.concurrency,
        name=lambda reference: f"problem {reference[0].id}, teacher path {reference[1]}",
        there=lambda reference: core.stored(*args(reference)),
        stop=stop,
    )
    refused = [
        {"problem_id": problem.id, "teacher_path": index, "reason": reason, "text": problem.teacher_paths[index]}
        for (problem, index), reason in sorted(swept.rejected, key=lambda found: (found[0][0].id, found[0][1]))
    ]
    write_atomically(rejects, "".join(dumps(line) + "\n" for line in refused))
    return swept.counts


def domain_of(problem: Problem) -> str | None:
    """The domain that a prompt file names for a problem."""
    given = problem.extra.get("domain")
    return given if isinstance(given, str) else None
