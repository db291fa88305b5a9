"""The configured decomposer and judge against labelled rows: what examples/evaluate_gsrm.py does."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rlkd_nemo import tasks
from rlkd_nemo.config.schema import Config
from rlkd_nemo.errors import ConfigError, InputError, Preempted, ServiceError
from rlkd_nemo.gsrm import dataset
from rlkd_nemo.gsrm.alignment import Question
from rlkd_nemo.gsrm.dataset import DecompositionRow, ResponseRow, Row, VerdictRow
from rlkd_nemo.gsrm.figures import StepFigures, VerdictFigures, table
from rlkd_nemo.gsrm.service.scoring import Scoring
from rlkd_nemo.gsrm.service.sweep import Swept, kind, sweep
from rlkd_nemo.report.files import dumps, write_atomically

log = logging.getLogger(__name__)
RESULT, ROWS = "gsrm_evaluation.json", "gsrm_evaluation_rows.jsonl"


def run(cfg: Config) -> str:
    """Measure on `gsrm.evaluation.data`; write gsrm_evaluation.json, and what came of each row, to exp_dir.

    Returns: the figures as a table.
    Raises: ConfigError, InputError and PromptFileError for bad settings and rows; ServiceError after writing when rows
        have no result because the system failed; Preempted when told to stop, without figures.
    """
    settings, folder = cfg.gsrm.evaluation, Path(cfg.exp_manager.exp_dir)
    if not settings.data:
        raise ConfigError("gsrm.evaluation.data is not set; wanted a file of labelled rows (rlkd_nemo/gsrm/dataset.py)")
    rows = dataset.split(dataset.read(settings.data, "gsrm.evaluation.data"), settings.held_out)[1]
    if not rows:
        raise InputError(
            f"{settings.data}: no problem is among the gsrm.evaluation.held_out={settings.held_out} held out; wanted "
            "more rows or a larger share"
        )
    figures, swept, lines = asyncio.run(measure(cfg, rows))
    if swept.counts["left"]:
        raise Preempted(f"stopped: {swept.told}; an evaluation has no middle, run it again")
    write_atomically(folder / ROWS, "".join(dumps(line) + "\n" for line in lines))
    write_atomically(folder / RESULT, dumps({"data": settings.data, **figures}, indent=2) + "\n")
    log.info("figures are in %s, rows in %s", folder / RESULT, folder / ROWS)
    shown = table(figures)
    if swept.failed:
        log.info("\n%s", shown)
        raise ServiceError(f"{len(swept.failed)} of {len(rows)} rows have no result ({swept.kinds}); run it again")
    return shown


async def measure(cfg: Config, rows: Sequence[Row]) -> tuple[dict[str, Any], Swept[Row], list[dict[str, Any]]]:
    """Figures by domain and by kind of verdict, how the requests ended, and a line for each row."""
    # Of its own, and empty: what is measured is what the endpoint says now.
    with tempfile.TemporaryDirectory() as store:
        gsrm = replace(cfg.gsrm, llm=replace(cfg.gsrm.llm, verdicts=None, verdicts_in_memory=0))
        core = Scoring(gsrm, store, tasks.notation(cfg.task))
        try:
            await core.start()
            return await _measure(core, rows, cfg.gsrm.evaluation.concurrency)
        finally:
            await core.aclose()


async def _measure(
    core: Scoring, rows: Sequence[Row], concurrency: int
) -> tuple[dict[str, Any], Swept[Row], list[dict[str, Any]]]:
    taken: dict[str, StepFigures] = {}
    judged: dict[str, VerdictFigures] = {}
    lines: dict[str, dict[str, Any]] = {}

    def of_steps(row: DecompositionRow) -> tuple[StepFigures, ...]:
        return taken.setdefault("all", StepFigures()), taken.setdefault(row.domain, StepFigures())

    def of_verdicts(row: VerdictRow | ResponseRow) -> dict[str, VerdictFigures]:
        kinds = {kind for _, kind in row.verdicts} | {"per_response"} if isinstance(row, ResponseRow) else {row.kind}
        return {name: judged.setdefault(name, VerdictFigures()) for name in ("all", *kinds)}

    async def take_apart(row: DecompositionRow) -> None:
        parsed = False
        try:
            steps = await core.decompose(row.problem, row.text, row.domain)
            parsed = True
            for figures in of_steps(row):
                figures.parse()
            result = await core.align(steps, row.steps, row.problem) if steps and row.steps else None
        except ServiceError as err:
            for figures in of_steps(row):
                figures.fail(f"judge_{kind(err)}" if parsed else kind(err), parsed)
            lines[row.id] = {"id": row.id, "failure": kind(err), "error": str(err)}
            raise
        for figures in of_steps(row):
            numbers = figures.compare(steps, row, result)
        lines[row.id] = {"id": row.id, **numbers, "steps": [asdict(step) for step in steps]}

    async def judge(row: VerdictRow | ResponseRow) -> None:
        try:
            if isinstance(row, ResponseRow):
                labelled, said = row.verdicts, await core.same_all(row.questions, row.problem)
            else:
                labelled = {(1, row.kind): row.same}
                said = {(1, row.kind): await core.same(Question(row.kind, row.teacher, row.student), row.problem)}
        except ServiceError as err:
            for figures in of_verdicts(row).values():
                figures.fail(kind(err))
            lines[row.id] = {"id": row.id, "failure": kind(err), "error": str(err)}
            raise
        for name, figures in of_verdicts(row).items():
            every = name in ("all", "per_response")
            figures.add([(same, said[where]) for where, same in labelled.items() if every or where[1] == name])
        if isinstance(row, ResponseRow):
            lines[row.id] = {"id": row.id, "labelled": _nested(labelled), "said": _nested(said)}
        else:
            lines[row.id] = {"id": row.id, "labelled": row.same, "said": said[1, row.kind]}

    async def ask(row: Row) -> None:
        await (take_apart(row) if isinstance(row, DecompositionRow) else judge(row))

    swept = await sweep(rows, ask, "rows", concurrency=concurrency, name=lambda row: row.id)
    for row, name in swept.failed:
        if name == "not_asked":
            every = of_steps(row) if isinstance(row, DecompositionRow) else of_verdicts(row).values()
            for figures in every:
                figures.fail(name)
            lines[row.id] = {"id": row.id, "failure": name}
    found = {
        "measured": core.version,
        "decompositions": {name: figures.shares() for name, figures in sorted(taken.items())},
        "verdicts": {name: figures.shares() for name, figures in sorted(judged.items())},
        "endpoints": [{"role": state.role, "name": state.name, **state.counters} for state in core.backends()],
    }
    return found, swept, [lines[row.id] for row in rows if row.id in lines]


def _nested(verdicts: dict[tuple[int, str], bool]) -> list[dict[str, bool]]:
    """Verdicts of a response, a pair an entry."""
    found: dict[int, dict[str, bool]] = {}
    for (number, kind_), same in verdicts.items():
        found.setdefault(number, {})[kind_] = same
    return list(found.values())
