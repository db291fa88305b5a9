"""Training data for a GSRM: a language model's decompositions of a prompt file's reasoning, and its verdicts on their
steps, kept only if they can be read.

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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlkd_nemo.config.schema import Config, Label
from rlkd_nemo.errors import BadReply, ConfigError, InputError, Preempted, ServiceError
from rlkd_nemo.gsrm.dataset import DecompositionRow, ResponseRow, Row
from rlkd_nemo.gsrm.prompting import Prompts
from rlkd_nemo.gsrm.service import label_verdicts
from rlkd_nemo.gsrm.service.backends import Backends
from rlkd_nemo.gsrm.service.decomposer import LLMDecomposer
from rlkd_nemo.gsrm.service.judge import LLMJudge
from rlkd_nemo.gsrm.service.label_verdicts import FORMATS, Comparison, VerdictLabeller
from rlkd_nemo.gsrm.service.mathematics import MathVerify
from rlkd_nemo.gsrm.service.prefill import Reference, domain_of, teacher_paths
from rlkd_nemo.gsrm.service.row_file import RowFile
from rlkd_nemo.gsrm.service.sweep import Swept, sweep
from rlkd_nemo.gsrm.service.verdicts import VerdictCache
from rlkd_nemo.lifecycle.run_lock import RunLock
from rlkd_nemo.lifecycle.signals import stop_requested
from rlkd_nemo.report.files import dumps, write_atomically

log = logging.getLogger(__name__)
REJECTS, SUMMARY = "gsrm_data_rejects.jsonl", "gsrm_data_summary.json"


@dataclass
class Ends:
    """How each request ended: of texts, and of comparisons by the format of their rows."""

    texts: Swept[Reference]
    verdicts: dict[str, Swept[Comparison]] = field(default_factory=dict)

    @property
    def all(self) -> list[Swept[Any]]:
        """Of both."""
        return [self.texts, *self.verdicts.values()]

    @property
    def told(self) -> str:
        """In words."""
        named: dict[str, Swept[Any]] = {
            "texts": self.texts,
            **{f"verdicts {name}": swept for name, swept in self.verdicts.items()},
        }
        return "; ".join(f"{name}: {swept.told}" for name, swept in named.items())

    def count(self, name: str) -> int:
        """Requests that ended so."""
        return sum(swept.counts[name] for swept in self.all)


def run(cfg: Config) -> None:
    """Label every teacher path of the task, and by `gsrm.label.verdicts` pairs of their steps, into `gsrm.label.out`, with
    rejects and a summary in exp_dir.

    Raises: ConfigError and InputError for settings and files that cannot be used; Preempted when told to stop;
    ServiceError at the end when some could not be had, or none could be read. The same command asks for what is missing.
    """
    settings, folder = cfg.gsrm.label, Path(cfg.exp_manager.exp_dir)
    if cfg.gsrm.decomposer != "llm":
        raise ConfigError(
            f"gsrm.decomposer={cfg.gsrm.decomposer} asks no model; wanted gsrm=openai or gsrm=vllm, with "
            "gsrm.llm.decomposer.urls and .model of the one that labels"
        )
    references = list(teacher_paths(cfg, settings.num_problems, "gsrm.label.num_problems"))
    if not references:
        raise InputError("the task's problems have no teacher path; wanted reasoning that can be taken apart")
    if FORMATS[settings.verdicts] and max(Counter(problem.prompt for problem, _ in references).values()) < 2:
        raise InputError(
            f"gsrm.label.verdicts={settings.verdicts} compares the texts of a problem, but none has two; wanted problems "
            "with several teacher_paths, or verdicts=none"
        )
    path = Path(settings.out or folder / "gsrm_data.jsonl")
    lock = RunLock(path.parent)
    lock.acquire()
    try:
        ends = asyncio.run(_label(cfg, references, path, folder))
    finally:
        lock.release()
    if ends.count("left"):
        raise Preempted(f"stopped: {ends.told}; what is done is in {path}, and the same command goes on")
    if ends.count("failed"):
        of = f"{len(ends.texts.failed)} of {len(references)} texts"
        if not ends.texts.failed:
            of = f"{ends.count('failed')} comparisons"
        raise ServiceError(f"{of} have no label ({ends.told}); run it again")
    if any(swept.rejected and not (swept.counts["made"] or swept.counts["there_before"]) for swept in ends.all):
        raise ServiceError(f"no reply could be read ({ends.told}); see {folder / REJECTS}")


async def _label(cfg: Config, references: list[Reference], path: Path, folder: Path) -> Ends:
    settings, llm = cfg.gsrm.label, cfg.gsrm.llm
    prompts = Prompts(llm.prompts, llm.max_problem_chars, llm.max_text_chars)
    backends = Backends("decomposer", llm.decomposer, per_s=settings.per_s)
    mathematics, undecided = MathVerify(llm.math_verify_s), MathVerify(0)
    deadline_s = llm.decomposer.attempts * llm.decomposer.timeout_s
    try:
        out = RowFile(path)
        await backends.start()
        decomposer = LLMDecomposer(backends, prompts, llm.max_tokens, llm.domain)
        judges = {
            name: LLMJudge(backends, prompts, VerdictCache(0), undecided, name == "per_response")
            for name in FORMATS["both"]
        }

        def source_of(row: Row) -> str:
            if isinstance(row, DecompositionRow):
                return decomposer.version(row.domain)
            return judges["per_response" if isinstance(row, ResponseRow) else "per_pair"].name

        out.check(source_of)
        labeller = Labeller(decomposer, out, deadline_s)
        ends = Ends(await labeller.label(references, settings))
        if not ends.count("left") and not ends.count("failed"):
            names = dict.fromkeys(row_id(*reference_text(reference)) for reference in references)
            taken = [row for name in names if isinstance(row := out.rows.get(name), DecompositionRow)]
            for name in FORMATS[settings.verdicts]:
                asked = await label_verdicts.comparisons(taken, settings, name == "per_response", mathematics)
                ends.verdicts[name] = await VerdictLabeller(judges[name], out, deadline_s).label(asked, settings)
        _report(ends, out, labeller.cut, backends, folder)
        return ends
    finally:
        await mathematics.aclose()
        await backends.aclose()


class Labeller:
    """Rows from a decomposer, appended to a file."""

    def __init__(self, decomposer: LLMDecomposer, out: RowFile, deadline_s: float) -> None:
        self._decomposer, self._out, self._deadline_s = decomposer, out, deadline_s
        self.cut = 0  # rows of this process whose text was too long for the prompt and cut

    async def label(
        self, references: list[Reference], settings: Label, stop: Callable[[], bool] = stop_requested
    ) -> Swept[Reference]:
        """Label what the file has not."""
        there = sum(row_id(*reference_text(reference)) in self._out.rows for reference in references)
        log.info("%d texts, %d of them labelled already", len(references), there)
        return await sweep(
            references,
            self._one,
            "labels",
            concurrency=settings.concurrency,
            name=lambda reference: f"problem {reference[0].id}, teacher path {reference[1]}",
            there=lambda reference: row_id(*reference_text(reference)) in self._out.rows,
            stop=stop,
        )

    async def _one(self, reference: Reference) -> None:
        problem, text = reference_text(reference)
        name, domain = row_id(problem, text), domain_of(reference[0])
        if name in self._out.rows:
            return
        made = await self._decomposer.decompose(problem, text, domain, time.monotonic() + self._deadline_s)
        if not made.steps:
            raise BadReply("no step was found")
        fields = {
            "id": name,
            "domain": self._decomposer.domain(domain),
            "problem": problem,
            "text": text,
            "steps": [asdict(step) for step in made.steps],
            "source": self._decomposer.version(domain),
        }
        self._out.add(fields, self._decomposer.form)
        self.cut += made.cut_chars > 0


def reference_text(reference: Reference) -> tuple[str, str]:
    """Problem and reasoning of a reference."""
    problem, index = reference
    return problem.prompt, problem.teacher_paths[index]


def row_id(problem: str, text: str) -> str:
    """Of the texts alone, so that a row is found again whatever else changes in the prompt file."""
    return hashlib.sha256(json.dumps([problem, text]).encode()).hexdigest()[:16]


def _report(ends: Ends, out: RowFile, cut: int, backends: Backends, folder: Path) -> None:
    """Rejects with their reasons, and the summary, both written anew by every run."""
    rejects: list[dict[str, Any]] = []
    for reference, reason in ends.texts.rejected:
        problem, text = reference_text(reference)
        where = {"id": row_id(problem, text), "problem_id": reference[0].id, "teacher_path": reference[1]}
        rejects.append({**where, "reason": reason, "problem": problem, "text": text})
    for swept in ends.verdicts.values():
        for comparison, reason in swept.rejected:
            questions = [{"pair": number, **asdict(question)} for number, question in comparison.questions]
            rejects.append(
                {"id": comparison.id, "reason": reason, "problem": comparison.problem, "questions": questions}
            )
    write_atomically(folder / REJECTS, "".join(dumps(line) + "\n" for line in rejects))
    rows = out.decompositions
    used: Counter[str] = Counter()
    for state in backends.states():
        used.update(state.counters)
    verdicts = label_verdicts.counted(out)
    summary = {
        "model": backends.settings.model,
        **ends.texts.counts,
        "failures": ends.texts.kinds,
        "rows": len(rows),
        "rows_by_domain": dict(Counter(row.domain for row in rows)),
        "mean_steps": sum(len(row.steps) for row in rows) / len(rows) if rows else None,
        "texts_cut": cut,
        "verdicts": {
            name: {**swept.counts, "failures": swept.kinds, **verdicts[name]} for name, swept in ends.verdicts.items()
        },
        "requests": used,
    }
    write_atomically(folder / SUMMARY, dumps(summary, indent=2) + "\n")
    log.info("%s; rejects are in %s, figures in %s", ends.told, folder / REJECTS, folder / SUMMARY)
