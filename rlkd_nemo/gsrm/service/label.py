"""Training data for a GSRM: a language model's decompositions of a prompt file's reasoning, kept only if they can be read.

Every row is written as soon as it is there, so that whatever ends the process, what was paid for stays; the same
command asks for the rest.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from rlkd_nemo.config.schema import Config, Label
from rlkd_nemo.errors import BadReply, ConfigError, InputError, Preempted, ServiceError
from rlkd_nemo.gsrm import dataset
from rlkd_nemo.gsrm.dataset import DecompositionRow
from rlkd_nemo.gsrm.prompting import Prompts
from rlkd_nemo.gsrm.service.backends import Backends
from rlkd_nemo.gsrm.service.decomposer import LLMDecomposer
from rlkd_nemo.gsrm.service.prefill import Reference, domain_of, teacher_paths
from rlkd_nemo.gsrm.service.sweep import Swept, sweep
from rlkd_nemo.lifecycle.run_lock import RunLock
from rlkd_nemo.lifecycle.signals import stop_requested
from rlkd_nemo.report.files import dumps, write_atomically

log = logging.getLogger(__name__)
REJECTS, SUMMARY = "gsrm_data_rejects.jsonl", "gsrm_data_summary.json"


def run(cfg: Config) -> None:
    """Label every teacher path of the task into `gsrm.label.out`, with rejects and a summary beside it in exp_dir.

    Raises: ConfigError and InputError for settings and files that cannot be used; Preempted when told to stop;
    ServiceError at the end when some could not be had, or none could be read. The same command asks for what is missing.
    """
    settings, llm, folder = cfg.gsrm.label, cfg.gsrm.llm, Path(cfg.exp_manager.exp_dir)
    if cfg.gsrm.decomposer != "llm":
        raise ConfigError(
            f"gsrm.decomposer={cfg.gsrm.decomposer} asks no model; wanted gsrm=openai or gsrm=vllm, with "
            "gsrm.llm.decomposer.urls and .model of the one that labels"
        )
    references = list(teacher_paths(cfg, settings.num_problems, "gsrm.label.num_problems"))
    if not references:
        raise InputError("the task's problems have no teacher path; wanted reasoning that can be taken apart")
    prompts = Prompts(llm.prompts, llm.max_problem_chars, llm.max_text_chars)
    out = Path(settings.out or folder / "gsrm_data.jsonl")

    async def main() -> Swept[Reference]:
        backends = Backends("decomposer", llm.decomposer, per_s=settings.per_s)
        try:
            await backends.start()
            decomposer = LLMDecomposer(backends, prompts, llm.max_tokens, llm.domain)
            labeller = Labeller(decomposer, out, llm.decomposer.attempts * llm.decomposer.timeout_s)
            swept = await labeller.label(references, settings)
            _report(swept, labeller, backends, folder)
            return swept
        finally:
            await backends.aclose()

    lock = RunLock(out.parent)
    lock.acquire()
    try:
        swept = asyncio.run(main())
    finally:
        lock.release()
    if swept.counts["left"]:
        raise Preempted(f"stopped: {swept.told}; what is done is in {out}, and the same command goes on")
    if swept.failed:
        raise ServiceError(f"{len(swept.failed)} of {len(references)} texts have no label ({swept.told}); run it again")
    if swept.rejected and not (swept.counts["made"] or swept.counts["there_before"]):
        raise ServiceError(f"no reply could be read ({swept.told}); see {folder / REJECTS}")


class Labeller:
    """Rows from a decomposer, appended to a file. `rows`: those of this file so far."""

    def __init__(self, decomposer: LLMDecomposer, out: Path, deadline_s: float) -> None:
        self._decomposer, self._out, self._deadline_s = decomposer, out, deadline_s
        self.rows = _resume(out)
        self.cut = 0  # rows of this process whose text was too long for the prompt and cut

    async def label(
        self, references: list[Reference], settings: Label, stop: Callable[[], bool] = stop_requested
    ) -> Swept[Reference]:
        """Label what the file has not. Raises InputError where its rows are of another model, prompt or form."""
        for row in self.rows.values():
            source = self._decomposer.version(row.domain)
            if row.source != source:
                raise InputError(
                    f"{self._out} has rows by {row.source!r}, and these settings would add some by {source!r}; wanted "
                    "another gsrm.label.out"
                )
        log.info("%d texts, %d of them labelled already", len(references), len(self.rows))
        with self._out.open("a", encoding="utf-8") as file:
            return await sweep(
                references,
                lambda reference: self._one(reference, file),
                "labels",
                concurrency=settings.concurrency,
                name=lambda reference: f"problem {reference[0].id}, teacher path {reference[1]}",
                there=lambda reference: _id(*reference_text(reference)) in self.rows,
                stop=stop,
            )

    async def _one(self, reference: Reference, file: TextIO) -> None:
        problem, text = reference_text(reference)
        row_id, domain = _id(problem, text), domain_of(reference[0])
        if row_id in self.rows:
            return
        made = await self._decomposer.decompose(problem, text, domain, time.monotonic() + self._deadline_s)
        if not made.steps:
            raise BadReply("no step was found")
        fields = {
            "id": row_id,
            "domain": self._decomposer.domain(domain),
            "problem": problem,
            "text": text,
            "steps": [asdict(step) for step in made.steps],
            "source": self._decomposer.version(domain),
        }
        try:
            row = dataset.parse(fields, self._decomposer.form)
        except InputError as err:
            raise BadReply(f"the reply is no training row: {err}") from err
        assert isinstance(row, DecompositionRow)
        file.write(dataset.line(row))
        file.flush()  # this row survives whatever comes to this process
        self.rows[row_id] = row
        self.cut += made.cut_chars > 0


def reference_text(reference: Reference) -> tuple[str, str]:
    """Problem and reasoning of a reference."""
    problem, index = reference
    return problem.prompt, problem.teacher_paths[index]


def _id(problem: str, text: str) -> str:
    """Of the texts alone, so that a row is found again whatever else changes in the prompt file."""
    return hashlib.sha256(json.dumps([problem, text]).encode()).hexdigest()[:16]


def _resume(out: Path) -> dict[str, DecompositionRow]:
    """Rows that are there; half a line at the end, which a killed process leaves, is cut off."""
    if not out.exists():
        return {}
    whole, newline, torn = out.read_bytes().rpartition(b"\n")
    if torn:
        log.warning("%s: its last line is cut off in the middle; it is removed and asked for again", out)
        with out.open("r+b") as file:
            file.truncate(len(whole) + len(newline))
    found = dataset.read(out, "gsrm.label.out") if whole.strip() else []
    strange = [row.id for row in found if not isinstance(row, DecompositionRow)]
    if strange:
        raise InputError(f"{out} has the verdict {strange[0]!r}; wanted decompositions only, or another gsrm.label.out")
    return {row.id: row for row in found if isinstance(row, DecompositionRow)}


def _report(swept: Swept[Reference], labeller: Labeller, backends: Backends, folder: Path) -> None:
    """Rejects with their reasons, and the summary, both written anew by every run."""
    rejects: list[dict[str, Any]] = []
    for reference, reason in swept.rejected:
        problem, text = reference_text(reference)
        where = {"id": _id(problem, text), "problem_id": reference[0].id, "teacher_path": reference[1]}
        rejects.append({**where, "reason": reason, "problem": problem, "text": text})
    write_atomically(folder / REJECTS, "".join(dumps(line) + "\n" for line in rejects))
    rows = labeller.rows.values()
    used: Counter[str] = Counter()
    for state in backends.states():
        used.update(state.counters)
    summary = {
        "model": backends.settings.model,
        **swept.counts,
        "failures": swept.kinds,
        "rows": len(rows),
        "rows_by_domain": dict(Counter(row.domain for row in rows)),
        "mean_steps": sum(len(row.steps) for row in rows) / len(rows) if rows else None,
        "texts_cut": labeller.cut,
        "requests": used,
    }
    write_atomically(folder / SUMMARY, dumps(summary, indent=2) + "\n")
    log.info("%s; rejects are in %s, figures in %s", swept.told, folder / REJECTS, folder / SUMMARY)
