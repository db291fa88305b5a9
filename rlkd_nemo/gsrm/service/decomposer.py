"""Free reasoning to steps by a language model: the whole reply, or field by field while it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rlkd_nemo.config.ranges import DOMAINS
from rlkd_nemo.errors import BadReply
from rlkd_nemo.gsrm import schema, stream
from rlkd_nemo.gsrm.prompting import Prompt, Prompts
from rlkd_nemo.gsrm.service.backends import Backends
from rlkd_nemo.gsrm.service.chat import JsonSchema, Reply, Request
from rlkd_nemo.gsrm.steps import thinking
from rlkd_nemo.types import Step

_OTHER_DOMAIN = "science"  # as in arXiv:2505.16142's released code for every domain that has no prompt of its own
_CONSTRAINT = JsonSchema("steps", schema.SCHEMA)


@dataclass(frozen=True)
class Decomposition:
    """Steps, the reply that they were read from, and the characters of the text that were cut off before."""

    steps: tuple[Step, ...]
    reply: str = ""
    cut_chars: int = 0


class _Unreadable(Exception):
    """A stream stops fitting the form: the model's fault, which tells nothing about the endpoint that carries it."""


class LLMDecomposer:
    """Asks the decomposer's endpoints. Only the thinking of a text is decomposed, as by `gsrm.steps.parse`."""

    def __init__(self, backends: Backends, prompts: Prompts, max_tokens: int, domain: str) -> None:
        self._backends, self._prompts, self._max_tokens, self._domain = backends, prompts, max_tokens, domain

    @property
    def form(self) -> schema.Form:
        """JSON where the endpoints can be held to it; known after they have started."""
        return "tags" if self._backends.mode == "none" else "json"

    def domain(self, given: str | None) -> str:
        """The prompt that a domain's texts get: its own, that of another domain, or that of `gsrm.llm.domain`."""
        if given is None:
            return self._domain
        return given if given in DOMAINS else _OTHER_DOMAIN

    def version(self, domain: str | None) -> str:
        """Everything that the steps of a text depend on."""
        parts = ["llm", self._backends.settings.model, self._prompts.version, self.domain(domain), self.form]
        return "+".join([*parts, f"{self._prompts.max_text_chars}"])

    async def decompose(self, problem: str, text: str, domain: str | None, deadline: float) -> Decomposition:
        """All steps; none, without a call, for a text without thinking.

        Raises: BackendUnavailable, BackendTimeout, BadReply (a reply cut off at max_tokens included).
        """
        text = thinking(text)
        if not text.strip():
            return Decomposition(())
        prompt = self._prompt(problem, text, domain)
        reply = await self._backends.complete(self._request(prompt), deadline)
        self._whole(reply)
        return Decomposition(tuple(schema.read(reply.text, self.form)), reply.text, prompt.cut_chars)

    async def stream(
        self,
        problem: str,
        text: str,
        domain: str | None,
        deadline: float,
        on_events: Callable[[list[stream.Event]], None],
    ) -> Decomposition:
        """The same, with the fields handed to `on_events` as they are complete. Cancel the task to stop generating."""
        text = thinking(text)
        if not text.strip():
            return Decomposition(())
        prompt, reader = self._prompt(problem, text, domain), stream.reader(self.form)
        steps: list[Step] = []

        def hand(events: list[stream.Event]) -> None:
            steps.extend(event.step for event in events if isinstance(event, stream.StepEnd))
            if events:
                on_events(events)

        def feed(piece: str) -> None:
            try:
                events = reader.feed(piece)
            except BadReply as err:
                raise _Unreadable from err
            hand(events)

        try:
            reply = await self._backends.stream(self._request(prompt), deadline, feed)
        except _Unreadable as err:
            assert isinstance(err.__cause__, BadReply)
            raise err.__cause__ from None
        self._whole(reply)
        hand(reader.close())
        return Decomposition(tuple(steps), reply.text, prompt.cut_chars)

    def _prompt(self, problem: str, text: str, domain: str | None) -> Prompt:
        return self._prompts.decomposition(problem, text, self.domain(domain), self.form)

    def _request(self, prompt: Prompt) -> Request:
        return Request(prompt.messages, self._max_tokens, _CONSTRAINT)

    def _whole(self, reply: Reply) -> None:
        if reply.finish == "length":
            raise BadReply(
                f"the decomposition was cut off at gsrm.llm.max_tokens={self._max_tokens}: {schema.shown(reply.text)}"
            )
