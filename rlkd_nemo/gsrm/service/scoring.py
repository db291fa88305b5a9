"""The scoring core: items in, structure rewards or typed failures out."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import anyio

from rlkd_nemo.config.gsrm_rules import not_lazy
from rlkd_nemo.config.schema import Backend, Gsrm
from rlkd_nemo.errors import BackendTimeout, BackendUnavailable, ConfigError, ServiceError
from rlkd_nemo.gsrm import alignment, decompose, judge, tree
from rlkd_nemo.gsrm.alignment import Asking, Question, StructureResult
from rlkd_nemo.gsrm.prompting import Prompts
from rlkd_nemo.gsrm.references import ReferenceStore
from rlkd_nemo.gsrm.service import lazy
from rlkd_nemo.gsrm.service.backends import Backends
from rlkd_nemo.gsrm.service.coalesce import Coalescer
from rlkd_nemo.gsrm.service.core import BackendState, Item, Result
from rlkd_nemo.gsrm.service.decomposer import Decomposition, LLMDecomposer
from rlkd_nemo.gsrm.service.judge import LLMJudge
from rlkd_nemo.gsrm.service.mathematics import MathVerify
from rlkd_nemo.gsrm.service.verdicts import VerdictCache
from rlkd_nemo.types import Failure, Notation, Step

Found = TypeVar("Found")
_HASH_RANGE = 1 << 32


class _Failed(Exception):
    """A stage of scoring has failed for a reason that lies with the system."""

    def __init__(self, stage: str, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.stage, self.failure = stage, failure


class Scoring:
    """`core.ScoringCore` with the decomposer and the judge that the settings name, models or rules.

    Args:
        store_dir: decomposed references.   notation: of a task, for the rule-based decomposer.
        transport: of httpx2, instead of the network.   per_s: most calls of the decomposer's endpoints in a second.
    Raises: ConfigError and InputError for settings that cannot be used.
    """

    def __init__(
        self,
        settings: Gsrm,
        store_dir: str | Path,
        notation: Notation | None = None,
        transport: Any = None,
        per_s: float | None = None,
    ) -> None:
        alignment.check_names(settings.norm, settings.alignment)
        self.settings, self._llm = settings, settings.llm
        self._not_lazy = "gsrm.llm.lazy=off" if settings.llm.lazy == "off" else not_lazy(settings)
        if settings.llm.lazy == "on" and self._not_lazy:
            raise ConfigError(f"gsrm.llm.lazy=on cannot be served: {self._not_lazy}; wanted lazy=auto or off")
        prompts = Prompts(settings.llm.prompts, settings.llm.max_problem_chars, settings.llm.max_text_chars)
        self._backends: list[Backends] = []
        self._store, self._references = ReferenceStore(store_dir), Coalescer[list[Step]]()
        self._decomposer: LLMDecomposer | None = None
        self._judge: LLMJudge | None = None
        self._mathematics = MathVerify(settings.llm.math_verify_s)
        self._verdicts: VerdictCache | None = None
        if settings.decomposer == "llm":
            self._backends.append(Backends("decomposer", settings.llm.decomposer, transport, per_s))
            self._decomposer = LLMDecomposer(self._backends[-1], prompts, settings.llm.max_tokens, settings.llm.domain)
        else:
            self._text = decompose.build(settings.decomposer, notation)
        if settings.judge == "llm":
            self._backends.append(Backends("judge", settings.llm.judge, transport))
            self._verdicts = VerdictCache(settings.llm.verdicts_in_memory, settings.llm.verdicts)
            self._judge = LLMJudge(
                self._backends[-1], prompts, self._verdicts, self._mathematics, settings.llm.judging == "per_response"
            )
        else:
            self._rule = judge.build(settings.judge)

    @property
    def version(self) -> str:
        """Known after `start`, which finds out how the endpoints constrain their replies."""
        s = self.settings
        judged = self._judge.name if self._judge else self._rule.name
        return "|".join([self._decomposed_by(None), judged, s.reference_mode, s.alignment, s.norm])

    @property
    def not_lazy(self) -> str | None:
        """Why no decomposition is stopped early; None where they are."""
        return self._not_lazy

    async def start(self) -> None:
        """Check all endpoints. Raises ConfigError, BackendUnavailable."""
        await asyncio.gather(*(backends.start() for backends in self._backends))

    async def score(self, item: Item, *, deadline_s: float) -> Result:
        """As `core.ScoringCore.score`."""
        deadline = time.monotonic() + deadline_s
        try:
            with anyio.fail_after(deadline_s):
                return await self._score(item, deadline)
        except _Failed as err:
            failure, message, detail = err.failure, str(err), {"stage": err.stage}
        except TimeoutError:
            failure, message, detail = Failure.TIMEOUT, f"not scored within {deadline_s:g} s", {}
        return Result(item.id, "failed", None, failure=failure, error=message, detail=detail)

    async def decompose(self, problem: str, text: str, domain: str | None = None) -> list[Step]:
        """Steps of a reference, made once ever. Raises BackendUnavailable, BackendTimeout, BadReply."""
        return await self._reference(problem, text, domain, _patiently(self._llm.decomposer))

    async def align(self, found: Sequence[Step], labelled: Sequence[Step], problem: str) -> StructureResult:
        """Steps against steps in order, by this core's judge; for measuring, whatever `gsrm.alignment` is. Raises as
        `same` does."""
        rule = alignment.asking(found, labelled, "none", "monotone")
        return await self._drive(rule, problem, _patiently(self._llm.judge))

    async def same(self, question: Question, problem: str) -> bool:
        """One verdict, call by call even under `per_response`. Raises BackendUnavailable, BackendTimeout, BadReply."""
        return await self._same(question, problem, _patiently(self._llm.judge))

    async def same_all(self, questions: Sequence[tuple[int, Question]], problem: str) -> dict[tuple[int, str], bool]:
        """Verdicts on numbered questions by number and kind: of a model in one call, whatever `judging` is. Raises as
        `same` does."""
        if self._judge is not None:
            return await self._judge.all(questions, problem, _patiently(self._llm.judge))
        return {(n, q.kind): self._rule.same(q.kind, q.teacher, q.student, problem) for n, q in questions}

    def stored(self, problem: str, text: str, domain: str | None = None) -> bool:
        """Would `decompose` find this reference in the store?"""
        return self._store.has_steps(self._decomposed_by(domain), problem, text)

    def backends(self) -> list[BackendState]:
        """Every endpoint of every role."""
        return [state for backends in self._backends for state in backends.states()]

    def unavailable(self) -> str | None:
        """The roles whose endpoints are all left alone."""
        for backends in self._backends:
            states = backends.states()
            if all(state.breaker == "open" for state in states):
                after = min(state.retry_after_s for state in states)
                return f"every {backends.role} endpoint is failing; tried again in {after:.0f} s"
        return None

    async def aclose(self) -> None:
        """Close connections, the verdicts' file and math-verify's process."""
        for backends in self._backends:
            await backends.aclose()
        await self._mathematics.aclose()
        if self._verdicts is not None:
            self._verdicts.close()

    async def _score(self, item: Item, deadline: float) -> Result:
        paths = item.references[:1] if self.settings.reference_mode == "first" else item.references
        if not paths:
            return _missing(item, "the item has no reference")
        references = asyncio.gather(*(self._reference(item.problem, p, item.domain, deadline) for p in paths))
        if self._not_lazy is None and not self._audited(item):
            teachers = await _stage("reference", Failure.DECOMPOSER_FAILED, references)
            if not teachers[0]:
                return _missing(item, "no step was found in reference 0")
            return await self._score_lazily(item, teachers[0], deadline)
        both = asyncio.gather(references, self._decomposed(item, deadline))
        teachers, decomposition = await _stage("decomposer", Failure.DECOMPOSER_FAILED, both)
        if not all(teachers):
            number = next(i for i, steps in enumerate(teachers) if not steps)
            return _missing(item, f"no step was found in reference {number}")
        if not decomposition.steps:
            return _unparseable(item, teachers[0], decomposition)
        compared = self._compare(item, decomposition.steps, teachers, deadline)
        result, reference = await _stage("judge", Failure.JUDGE_FAILED, compared)
        return _result(item, result, decomposition.steps, teachers[reference], reference, decomposition)

    async def _score_lazily(self, item: Item, teacher: list[Step], deadline: float) -> Result:
        decomposer = self._decomposer
        assert decomposer is not None
        # A stream that breaks off is begun anew; the verdicts so far are known by then.
        for attempt in range(1, self._llm.decomposer.attempts + 1):
            found = lazy.structure_reward(
                lambda hand: _stage(
                    "decomposer",
                    Failure.DECOMPOSER_FAILED,
                    decomposer.stream(item.problem, item.response, item.domain, deadline, hand),
                ),
                teacher,
                lambda question: _stage("judge", Failure.JUDGE_FAILED, self._same(question, item.problem, deadline)),
                self.settings.norm,
            )
            try:
                scored = await found
                break
            except _Failed as err:
                broken = err.stage == "decomposer" and err.failure is Failure.BACKEND_UNAVAILABLE
                if not broken or attempt == self._llm.decomposer.attempts or self.unavailable():
                    raise
        if not scored.student:
            return _unparseable(item, teacher, scored.decomposition or Decomposition(()))
        return _result(item, scored.result, scored.student, teacher, 0, scored.decomposition)

    def _audited(self, item: Item) -> bool:
        """Is this one of the responses that are decomposed to the end? The same ones every time."""
        digest = hashlib.sha256(f"{item.problem}\x00{item.response}".encode("utf-8", "replace")).digest()
        return int.from_bytes(digest[:4], "big") < self._llm.eager_share * _HASH_RANGE

    async def _decomposed(self, item: Item, deadline: float) -> Decomposition:
        if self._decomposer is not None:
            return await self._decomposer.decompose(item.problem, item.response, item.domain, deadline)
        return Decomposition(tuple(self._text.decompose(item.problem, item.response)))

    def _decomposed_by(self, domain: str | None) -> str:
        return self._decomposer.version(domain) if self._decomposer is not None else self._text.version

    async def _reference(self, problem: str, text: str, domain: str | None, deadline: float) -> list[Step]:
        async def make() -> Sequence[Step]:
            item = Item("", problem, text, (), domain)
            return (await self._decomposed(item, deadline)).steps

        version = self._decomposed_by(domain)
        key = "\x00".join([version, problem, text])
        return await self._references.get(key, lambda: self._store.steps_from(version, problem, text, make))

    async def _compare(
        self, item: Item, student: Sequence[Step], teachers: Sequence[list[Step]], deadline: float
    ) -> tuple[StructureResult, int]:
        """The result, and the index of the reference that it is measured against."""
        s = self.settings
        if s.reference_mode == "tree":
            name = self._judge.name if self._judge else self._rule.name
            merged = await self._store.tree_from(
                name, item.problem, teachers, lambda: self._drive(tree.merging(teachers), item.problem, deadline)
            )
            walk = tree.asking(student, teachers, merged, s.norm)
            return await self._drive(walk, item.problem, deadline)
        results = await asyncio.gather(*(self._against(item, student, steps, deadline) for steps in teachers))
        best = max(range(len(results)), key=lambda index: results[index].reward)
        return results[best], best

    async def _against(
        self, item: Item, student: Sequence[Step], teacher: Sequence[Step], deadline: float
    ) -> StructureResult:
        s = self.settings
        rule = alignment.asking(student, teacher, s.norm, s.alignment)
        if self._judge is not None and self._judge.per_response:
            pairs = [(n, q) for n, pair in enumerate(zip(student, teacher), 1) for q in alignment.comparable(*pair)]
            verdicts = await self._judge.all(pairs, item.problem, deadline)
            known = {question: verdicts[number, question.kind] for number, question in pairs}
            return _told(rule, known)
        if self._judge is not None and s.alignment == "monotone":
            # Every pair will be asked about: all at once, so that the rule below finds the verdicts there.
            metas = {Question("meta", t.meta, m.meta) for m in student for t in teacher if t.meta and m.meta}
            await asyncio.gather(*(self._same(question, item.problem, deadline) for question in metas))
        return await self._drive(rule, item.problem, deadline)

    async def _drive(self, rule: Asking[Found], problem: str, deadline: float) -> Found:
        """As `alignment.answered`, with questions that may be answered together asked together."""
        try:
            questions = next(rule)
            while True:
                same = await asyncio.gather(*(self._same(q, problem, deadline) for q in questions))
                questions = rule.send(list(same))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def _same(self, question: Question, problem: str, deadline: float) -> bool:
        if self._judge is not None:
            return await self._judge.same(question, problem, deadline)
        return self._rule.same(question.kind, question.teacher, question.student, problem)


def _patiently(backend: Backend) -> float:
    """A deadline that leaves room for every attempt."""
    return time.monotonic() + backend.attempts * backend.timeout_s


def _told(rule: Asking[Found], known: dict[Question, bool]) -> Found:
    try:
        questions = next(rule)
        while True:
            questions = rule.send([known[question] for question in questions])
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def _stage(stage: str, otherwise: Failure, work: Awaitable[Found]) -> Found:
    try:
        return await work
    except ServiceError as err:
        failure = otherwise
        if isinstance(err, BackendTimeout):
            failure = Failure.TIMEOUT
        elif isinstance(err, BackendUnavailable):
            failure = Failure.BACKEND_UNAVAILABLE
        raise _Failed(stage, failure, f"{stage}: {err}") from err


def _missing(item: Item, message: str) -> Result:
    return Result(item.id, "failed", None, failure=Failure.REFERENCE_MISSING, error=message)


def _unparseable(item: Item, teacher: Sequence[Step], decomposition: Decomposition) -> Result:
    return Result(
        item.id,
        "ok",
        0.0,
        teacher_steps=tuple(teacher),
        failure=Failure.UNPARSEABLE_STUDENT,
        error="no step was found in the response",
        detail={"student_complete": True, "reply": decomposition.reply, "cut_chars": decomposition.cut_chars},
    )


def _result(
    item: Item,
    result: StructureResult,
    student: Sequence[Step],
    teacher: Sequence[Step],
    reference: int,
    decomposition: Decomposition | None,
) -> Result:
    detail: dict[str, Any] = {
        "reference": reference,
        "n_teacher": result.n_teacher,
        "weights": list(result.weights),
        "parts_at": result.parts_at,
        "student_complete": decomposition is not None,
    }
    if decomposition is not None:
        detail |= {"reply": decomposition.reply, "cut_chars": decomposition.cut_chars}
    return Result(
        item.id,
        "ok",
        result.reward,
        matched=result.matched,
        student_steps=tuple(student),
        teacher_steps=tuple(teacher),
        steps=tuple({**asdict(verdict), "weight": verdict.weight} for verdict in result.verdicts),
        detail=detail,
    )
