"""A stand-in for an OpenAI-compatible endpoint: no model, but its waiting times, token counts and faults are real.

Replies come from a rule (`stand_in` below, or the caller's own), at `first_token_s` plus `token_s` a token, streamed;
at most `slots` requests generate at once, and a dropped connection frees the slot and stops the count.
A token is four characters.

    python benchmarks/gsrm_endpoint.py --port 8200 --first-token-s 0.05 --token-s 0.01
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from rlkd_nemo.gsrm import schema
from rlkd_nemo.tasks.answers import normalised
from rlkd_nemo.types import Step

TOKEN_CHARS = 4
FAULTS = ("fail", "hang", "html", "truncated", "broken_stream", "other_model", "too_many", "reject")


@dataclass
class Behaviour:
    """What the endpoint is like; may be changed while it runs.

    Attributes:
        faults: share of requests that go wrong, by name out of FAULTS; drawn with `seed`.
        stream_interval: tokens an event of a stream carries, as vLLM's option of that name.
        constrains: kinds of constraint that are kept: vllm, json_schema. Others are ignored with 200, as in real ones.
        key: bearer token wanted; None: anybody may ask.
    """

    model: str = "stand-in"
    first_token_s: float = 0.0
    token_s: float = 0.0
    slots: int = 32
    stream_interval: int = 1
    constrains: tuple[str, ...] = ("vllm", "json_schema")
    faults: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    key: str | None = None


Rule = Callable[[list[dict[str, str]], str], str]


def equal(left: str, right: str) -> bool:
    """The same after normalisation."""
    return normalised(left) == normalised(right)


def stand_in(messages: list[dict[str, str]], form: str, same: Callable[[str, str], bool] = equal) -> str:
    """A rule in place of a model. Decomposing: lines `aim: question = answer` of the fenced text are the steps.
    Judging: by `same`. Anything else: hello.

    Args: form: `json` where a JSON schema is asked for and kept, else `text`.
    """
    request = messages[-1]["content"]
    marked = re.search(r"marked with the word (\S+)\.", request)
    if marked is None:
        return "hello"
    inside = re.findall(rf"<<<{marked[1]}\n(.*?)\n{marked[1]}>>>", request, re.DOTALL)
    if request.endswith("apart."):
        found = [Step(*line) for line in re.findall(r"^([\w ]+): (.*?) = (.*)$", inside[1], re.MULTILINE)]
        return schema.write(found, "json" if form == "json" else "tags")
    if request.endswith("yes or no"):
        return "yes" if same(inside[1], inside[2]) else "no"
    texts, verdicts = iter(inside[1:]), {}
    for number, names in re.findall(r"^Pair (\d+) \((.*)\):$", request, re.MULTILINE):
        verdicts[number] = {name: "yes" if same(next(texts), next(texts)) else "no" for name in names.split(", ")}
    return json.dumps(verdicts)


class Endpoint:
    """The server. `counters`: calls, prompt_tokens, completion_tokens (really generated), cancelled, and each fault."""

    def __init__(self, behaviour: Behaviour | None = None, rule: Rule = stand_in) -> None:
        self.behaviour, self.rule = behaviour or Behaviour(), rule
        self.counters: Counter[str] = Counter()
        self.listed: list[str] | None = None  # what /models says; None: the model that there is
        self._random = random.Random(self.behaviour.seed)
        self._slots: asyncio.Semaphore | None = None
        self.app = Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/counters", lambda request: JSONResponse(dict(self.counters))),
            ]
        )

    def _denied(self, request: Request) -> Response | None:
        key = self.behaviour.key
        if key is not None and request.headers.get("authorization") != f"Bearer {key}":
            return JSONResponse({"error": "invalid key"}, 401)
        return None

    async def _models(self, request: Request) -> Response:
        listed = [self.behaviour.model] if self.listed is None else self.listed
        return self._denied(request) or JSONResponse({"data": [{"id": name} for name in listed]})

    async def _chat(self, request: Request) -> Response:
        if (denied := self._denied(request)) is not None:
            return denied
        asked = await request.json()
        self.counters["calls"] += 1
        if asked["model"] != self.behaviour.model:
            return JSONResponse({"error": f"The model {asked['model']} does not exist"}, 404)
        fault = self._fault()
        if fault == "fail":
            return JSONResponse({"error": "internal"}, 500)
        if fault == "too_many":
            return JSONResponse({"error": "busy"}, 429, headers={"Retry-After": "0.05"})
        if fault == "reject":
            return JSONResponse({"error": "the prompt is too long"}, 400)
        if fault == "html":
            return HTMLResponse("<html><body>Welcome to the proxy</body></html>")
        if fault == "hang":
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._gone(request), 3600)
            return Response()
        text = self._reply(asked)
        model = "another-model" if fault == "other_model" else self.behaviour.model
        prompt_tokens = sum(len(message["content"]) for message in asked["messages"]) // TOKEN_CHARS
        self.counters["prompt_tokens"] += prompt_tokens
        tokens = [text[i : i + TOKEN_CHARS] for i in range(0, len(text), TOKEN_CHARS)]
        finish = "stop"
        if len(tokens) > asked.get("max_tokens", 1 << 30):
            tokens, finish = tokens[: asked["max_tokens"]], "length"
        if asked.get("stream"):
            events = self._stream(model, prompt_tokens, tokens, finish, fault == "broken_stream")
            return StreamingResponse(events, media_type="text/event-stream")
        return await self._whole(request, model, prompt_tokens, tokens, finish, fault == "truncated")

    def _fault(self) -> str | None:
        drawn = self._random.random()
        for name, share in self.behaviour.faults.items():
            if drawn < share:
                self.counters[name] += 1
                return name
            drawn -= share
        return None

    def _reply(self, asked: dict[str, Any]) -> str:
        choice: list[str] | None = None
        form, wrap = "text", False
        if "structured_outputs" in asked and "vllm" in self.behaviour.constrains:
            choice = asked["structured_outputs"].get("choice")
            form = "text" if choice else "json"
        elif "response_format" in asked and "json_schema" in self.behaviour.constrains:
            properties = asked["response_format"]["json_schema"]["schema"]["properties"]
            choice = properties.get("choice", {}).get("enum")
            form, wrap = ("text" if choice else "json"), choice is not None
        text = self.rule(asked["messages"], form)
        if choice and text not in choice:
            text = choice[0]
        return json.dumps({"choice": text}) if wrap else text

    def _slot(self) -> asyncio.Semaphore:
        if self._slots is None:  # made in the loop that uses it
            self._slots = asyncio.Semaphore(self.behaviour.slots)
        return self._slots

    async def _gone(self, request: Request) -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(0.01)

    async def _whole(
        self, request: Request, model: str, prompt_tokens: int, tokens: list[str], finish: str, truncated: bool
    ) -> Response:
        async with self._slot():
            await asyncio.sleep(self.behaviour.first_token_s + self.behaviour.token_s * len(tokens))
        self.counters["completion_tokens"] += len(tokens)
        body = json.dumps(
            {
                "model": model,
                "choices": [{"index": 0, "message": {"content": "".join(tokens)}, "finish_reason": finish}],
                "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": len(tokens)},
            }
        )
        return Response(body[: len(body) // 2] if truncated else body, media_type="application/json")

    async def _stream(self, model: str, prompt_tokens: int, tokens: list[str], finish: str, broken: bool) -> Any:
        def event(delta: dict[str, str], number: int, reason: str | None) -> str:
            usage = {"prompt_tokens": prompt_tokens, "completion_tokens": number}
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            return f"data: {json.dumps({'model': model, 'choices': [choice], 'usage': usage})}\n\n"

        complete = False
        try:
            async with self._slot():
                begun = time.monotonic()
                for sent in range(0, len(tokens), self.behaviour.stream_interval):
                    some = tokens[sent : sent + self.behaviour.stream_interval]
                    number = sent + len(some)
                    due = begun + self.behaviour.first_token_s + self.behaviour.token_s * number
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                    self.counters["completion_tokens"] += len(some)
                    if broken and number > len(tokens) // 2:
                        complete = True
                        return
                    yield event({"content": "".join(some)}, number, None)
                yield event({}, len(tokens), finish)
                yield "data: [DONE]\n\n"
            complete = True
        finally:
            self.counters["cancelled"] += not complete


@contextlib.contextmanager
def serving(endpoint: Endpoint, port: int = 0) -> Iterator[str]:
    """The endpoint on a thread of this process; gives its address up to /v1."""
    listener = socket.create_server(("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(endpoint.app, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(5)
        listener.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8200)
    parser.add_argument("--model", default="stand-in")
    parser.add_argument("--first-token-s", type=float, default=0.05)
    parser.add_argument("--token-s", type=float, default=0.01)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--stream-interval", type=int, default=1, help="tokens an event of a stream")
    for fault in FAULTS:
        parser.add_argument(f"--{fault.replace('_', '-')}", type=float, default=0.0, metavar="SHARE")
    given = parser.parse_args()
    behaviour = Behaviour(
        model=given.model,
        first_token_s=given.first_token_s,
        token_s=given.token_s,
        slots=given.slots,
        stream_interval=given.stream_interval,
        faults={fault: getattr(given, fault) for fault in FAULTS if getattr(given, fault)},
    )
    uvicorn.run(Endpoint(behaviour).app, host="127.0.0.1", port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
