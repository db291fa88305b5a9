"""One request to an OpenAI-compatible chat endpoint: its body, and its reply read with suspicion."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

from rlkd_nemo.errors import BackendUnavailable, BadReply
from rlkd_nemo.gsrm.schema import shown

Mode = Literal["vllm", "json_schema", "none"]


@dataclass(frozen=True)
class Choice:
    """The reply is one of these."""

    options: tuple[str, ...]


@dataclass(frozen=True)
class JsonSchema:
    """The reply is JSON of this schema."""

    name: str
    schema: dict[str, Any]


@dataclass(frozen=True)
class Request:
    """A chat completion at temperature 0. `constraint` is dropped where the endpoint offers none (mode `none`)."""

    messages: list[dict[str, str]]
    max_tokens: int
    constraint: Choice | JsonSchema | None = None


@dataclass(frozen=True)
class Reply:
    """A whole reply. `finish`: stop or length.  Tokens as the endpoint counts them, 0 where it does not."""

    text: str
    finish: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


def body(
    request: Request, model: str, mode: Mode, stream: bool, limit_field: str = "max_tokens", reasoning_tokens: int = 0
) -> dict[str, Any]:
    """The JSON to post. vLLM >= 0.11 takes `structured_outputs`; OpenAI's own form is `response_format`.

    Args: limit_field, reasoning_tokens: as the settings of `Backend`.
    """
    fields: dict[str, Any] = {"model": model, "messages": request.messages}
    fields[limit_field] = request.max_tokens + reasoning_tokens
    if limit_field == "max_tokens":
        # OpenAI's reasoning models, which refuse max_tokens, refuse every temperature but their own as well.
        fields["temperature"] = 0
    if stream:
        # Usage in every piece (vLLM) still counts the tokens of a stream that is cancelled.
        usage = {"include_usage": True} | ({"continuous_usage_stats": True} if mode == "vllm" else {})
        fields |= {"stream": True, "stream_options": usage}
    constraint = request.constraint
    if constraint is not None and mode == "vllm":
        fields["structured_outputs"] = (
            {"choice": list(constraint.options)} if isinstance(constraint, Choice) else {"json": constraint.schema}
        )
    elif constraint is not None and mode == "json_schema":
        named = _choice_schema(constraint) if isinstance(constraint, Choice) else constraint
        fields["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": named.name, "schema": named.schema, "strict": True},
        }
    return fields


def chosen(text: str, options: tuple[str, ...], mode: Mode) -> str | None:
    """Which option a reply to a Choice is, None if it is none of them: exactly, never by what it contains.

    Without a constraint, case, white space and a full stop at the end do not count.
    """
    if mode == "json_schema":
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        text = value["choice"] if isinstance(value, dict) and list(value) == ["choice"] else ""
        return text if text in options else None
    if mode == "none":
        text = text.strip().removesuffix(".").casefold()
    return text if text in options else None


def read(content: bytes, content_type: str, model: str) -> Reply:
    """The reply in a response body. Raises BadReply for HTML, broken JSON, another model's name and missing text."""
    payload = _payload(content, content_type)
    _same_model(payload, model)
    try:
        choice = payload["choices"][0]
        text, finish = choice["message"]["content"], choice["finish_reason"]
    except (KeyError, IndexError, TypeError) as err:
        raise BadReply(f"the reply has no choices[0].message: {shown(content.decode('utf-8', 'replace'))}") from err
    return Reply(_text(text), _finish(finish), *_tokens(payload.get("usage")))


class StreamReader:
    """Server-sent events of a streamed reply: `feed` them one by one; `text` and tokens so far, `finish` at the end."""

    def __init__(self, model: str) -> None:
        self._model = model
        self.finish: str | None = None
        self.done = False
        self.pieces = 0
        self.usage: tuple[int, int] = (0, 0)

    @property
    def completion_tokens(self) -> int:
        """As counted by the endpoint, else one a piece."""
        return self.usage[1] or self.pieces

    def feed(self, data: str) -> str:
        """The text that an event adds. Raises BadReply, BackendUnavailable (the server gave up)."""
        if data == "[DONE]":
            self.done = True
            return ""
        payload = _payload(data.encode(), "application/json")
        if "error" in payload:
            raise BackendUnavailable(f"the stream reports an error: {shown(str(payload['error']))}")
        _same_model(payload, self._model)
        if payload.get("usage"):
            self.usage = _tokens(payload["usage"])
        added = ""
        try:
            found = [
                ((choice.get("delta") or {}).get("content"), choice.get("finish_reason"))
                for choice in payload.get("choices") or []
            ]
        except (AttributeError, TypeError) as err:
            raise BadReply(f"the stream has no choices with a delta: {shown(data)}") from err
        for piece, finish in found:
            if piece:
                added += _text(piece)
                self.pieces += 1
            if finish is not None:
                self.finish = _finish(finish)
        return added


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """Data of each server-sent event.

    Lines end at line feeds only: text inside the JSON may hold Unicode's other line separators as they are.
    """
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip().decode("utf-8", "replace")


def _choice_schema(choice: Choice) -> JsonSchema:
    return JsonSchema(
        "choice",
        {
            "type": "object",
            "properties": {"choice": {"type": "string", "enum": list(choice.options)}},
            "required": ["choice"],
            "additionalProperties": False,
        },
    )


def _payload(content: bytes, content_type: str) -> dict[str, Any]:
    if "html" in content_type:
        raise BadReply(f"the endpoint replied with HTML: {shown(content.decode('utf-8', 'replace'))}")
    try:
        payload = json.loads(content)
    except (ValueError, RecursionError) as err:
        raise BadReply(f"the reply is no JSON ({err}): {shown(content.decode('utf-8', 'replace'))}") from err
    if not isinstance(payload, dict):
        raise BadReply(f"the reply is no JSON object: {shown(content.decode('utf-8', 'replace'))}")
    return payload


def _same_model(payload: dict[str, Any], model: str) -> None:
    found = payload.get("model")
    # OpenAI names the snapshot behind an alias: gpt-x is answered by gpt-x-2026-01-31. `transformers serve` adds the
    # revision: x is answered by x@main.
    more = r"(-\d{4}(-\d\d-\d\d)?|@[\w.\-/]+)"
    if found is not None and found != model and not re.fullmatch(re.escape(model) + more, str(found)):
        raise BadReply(f"the reply is of model {found!r}, wanted {model!r}; is the address right?")


def _text(text: Any) -> str:
    if not isinstance(text, str):
        raise BadReply(
            f"the reply's content is {type(text).__name__}, not text; a reasoning model needs more max_tokens"
        )
    return text


def _finish(finish: Any) -> str:
    if finish == "abort":
        raise BackendUnavailable("the endpoint aborted the request")
    if finish not in ("stop", "length"):
        raise BadReply(f"the reply ended for {finish!r}; wanted stop or length")
    return str(finish)


def _tokens(usage: Any) -> tuple[int, int]:
    try:
        return int((usage or {}).get("prompt_tokens") or 0), int((usage or {}).get("completion_tokens") or 0)
    except (AttributeError, TypeError, ValueError, OverflowError) as err:  # JSON may say Infinity
        raise BadReply(f"the reply's usage counts no tokens: {shown(str(usage))}") from err
