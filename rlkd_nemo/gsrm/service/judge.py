"""Do two texts say the same? Asked of a language model: one question a call, or all of a response in one."""

from __future__ import annotations

from collections.abc import Sequence

from rlkd_nemo.errors import BadReply
from rlkd_nemo.gsrm.alignment import Question
from rlkd_nemo.gsrm.prompting import Prompts
from rlkd_nemo.gsrm.schema import after_thinking, shown
from rlkd_nemo.gsrm.service import chat
from rlkd_nemo.gsrm.service.backends import Backends
from rlkd_nemo.gsrm.service.chat import Choice, JsonSchema, Request
from rlkd_nemo.gsrm.service.coalesce import Coalescer
from rlkd_nemo.gsrm.service.mathematics import MathVerify
from rlkd_nemo.gsrm.service.verdicts import VerdictCache, key
from rlkd_nemo.gsrm.verdict_reply import YES_NO, read_verdicts, verdicts_schema

_WORD_TOKENS, _VERDICT_TOKENS = 16, 64  # room for {"choice": "yes"}, and for a pair's three verdicts
Pairs = Sequence[tuple[int, Question]]  # numbered from 1; a number may come once for each kind


class LLMJudge:
    """Verdicts by content: decided once, shared by equal questions in flight, kept in the cache.

    A reply that is not exactly yes or no is no verdict: BadReply.
    """

    def __init__(
        self, backends: Backends, prompts: Prompts, cache: VerdictCache, mathematics: MathVerify, per_response: bool
    ) -> None:
        self._backends, self._prompts, self._cache, self._mathematics = backends, prompts, cache, mathematics
        self.per_response = per_response
        self._same: Coalescer[bool] = Coalescer()

    @property
    def name(self) -> str:
        """Everything that a verdict depends on but the texts."""
        how = "per_response" if self.per_response else "per_pair"
        return "+".join(["llm", self._backends.settings.model, self._prompts.version, how, self._backends.mode])

    async def same(self, question: Question, problem: str, deadline: float) -> bool:
        """The verdict on one pair of texts. Raises BackendUnavailable, BackendTimeout, BadReply."""
        name = self._key(question, problem)
        known = await self._known(name, question)
        if known is not None:
            return known

        async def ask() -> bool:
            verdict = await self._ask(question, problem, deadline)
            self._cache.put(name, verdict)
            return verdict

        return await self._same.get(name, ask)

    async def all(self, pairs: Pairs, problem: str, deadline: float) -> dict[tuple[int, str], bool]:
        """Verdicts by number and kind, in one call for those not known yet. Raises as `same` does."""
        found: dict[tuple[int, str], bool] = {}
        asked: dict[int, dict[str, Question]] = {}
        for number, question in pairs:
            known = await self._known(self._key(question, problem), question)
            if known is None:
                asked.setdefault(number, {})[question.kind] = question
            else:
                found[number, question.kind] = known
        if asked:
            for (number, kind), verdict in (await self._ask_all(asked, problem, deadline)).items():
                self._cache.put(self._key(asked[number][kind], problem), verdict)
                found[number, kind] = verdict
        return found

    def _key(self, question: Question, problem: str) -> str:
        return key(self.name, question.kind, question.teacher, question.student, problem)

    async def _known(self, name: str, question: Question) -> bool | None:
        known = self._cache.get(name)
        if known is None and question.kind == "answer":
            known = await self._mathematics.equal(question.teacher, question.student)
            if known is not None:
                self._cache.put(name, known)
        return known

    async def _ask(self, question: Question, problem: str, deadline: float) -> bool:
        prompt = self._prompts.question(question.kind, question.teacher, question.student, problem)
        reply = await self._backends.complete(Request(prompt.messages, _WORD_TOKENS, Choice(YES_NO)), deadline)
        verdict = chat.chosen(after_thinking(reply.text), YES_NO, self._backends.mode)
        if verdict is None:
            raise BadReply(f"the judge replied {shown(reply.text)}; wanted yes or no, nothing else")
        return verdict == "yes"

    async def _ask_all(
        self, asked: dict[int, dict[str, Question]], problem: str, deadline: float
    ) -> dict[tuple[int, str], bool]:
        pairs = [
            {
                "number": number,
                "fields": list(questions),
                "teacher": {kind: question.teacher for kind, question in questions.items()},
                "student": {kind: question.student for kind, question in questions.items()},
            }
            for number, questions in asked.items()
        ]
        prompt = self._prompts.all_questions(pairs, problem)
        request = Request(
            prompt.messages, _VERDICT_TOKENS * (len(asked) + 1), JsonSchema("verdicts", verdicts_schema(asked))
        )
        reply = await self._backends.complete(request, deadline)
        return read_verdicts(after_thinking(reply.text), asked)
