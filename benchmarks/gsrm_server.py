"""What scoring a step costs: calls, generated tokens and time, against the call pattern of RLKD's released code.

Both sides talk to the same stand-in endpoint (`gsrm_endpoint.py`: rules in place of a model; waiting times and token
counts are real), a decomposer and a judge, each serving `--slots` requests at once, in a process of its own.

- `released`: the released algorithm's pattern, written by us: every response and, for each response again, its teacher's
  path are decomposed whole, first all of the former, then all of the latter; then the judge is asked step by step, one
  call after the other within a response. A micro-batch (8 responses in the published recipe: 4 ranks of 2) is scored
  before the next one is sampled. In its favour: all responses of a micro-batch are judged at once, and its judge, which
  has no max_tokens, replies with one token.
- `released, one batch`: the same if the whole step were one micro-batch.
- `ours, lazy`: per_pair, decompositions stopped where nothing more counts.
- `ours, together`: per_response, one call for all verdicts of a response.

Epoch 2 has other responses to the same problems, worded anew, so that only references are known from epoch 1.

    python benchmarks/gsrm_server.py --out benchmarks/results/gsrm_server.json
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import platform
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import httpx2  # noqa: E402
import uvicorn  # noqa: E402

from benchmarks.gsrm_endpoint import Behaviour, Endpoint, stand_in  # noqa: E402
from rlkd_nemo.config.schema import LLM, Backend, Gsrm  # noqa: E402
from rlkd_nemo.gsrm import schema  # noqa: E402
from rlkd_nemo.gsrm.prompting import Prompts  # noqa: E402
from rlkd_nemo.gsrm.service.backends import Backends  # noqa: E402
from rlkd_nemo.gsrm.service.chat import Request  # noqa: E402
from rlkd_nemo.gsrm.service.core import Item  # noqa: E402
from rlkd_nemo.gsrm.service.scoring import Scoring  # noqa: E402

CODE = r"\bk[pn]\d\w*"
FILLER = "take the next part because it fixes what the others need and can be settled with what is known by now"
WORDS = FILLER.split()
# Words of a field: about 37 tokens of four characters for a meta line, 20 for a question, 5 for an answer.
LENGTHS = {"meta": 30, "question": 15, "answer": 3}


def coded(left: str, right: str) -> bool:
    """Fields say the same if they carry the same code word, however they are worded."""
    return re.findall(CODE, left) == re.findall(CODE, right)


def field(name: str, code: str, rng: random.Random) -> str:
    return " ".join([f"k{code}", *rng.choices(WORDS, k=LENGTHS[name])])


def text(codes: list[str], rng: random.Random) -> str:
    """Reasoning in the lines that the stand-in reads as steps, worded by `rng`."""
    lines = [f"{field('meta', c, rng)}: {field('question', c, rng)} = {field('answer', c, rng)}" for c in codes]
    return "<think>\n" + "\n".join(lines) + "\n</think>"


def items(responses: int, per_prompt: int, steps: int, match: float, epoch: int) -> list[Item]:
    """Responses that follow their reference for `match` of its steps on average, then go elsewhere."""
    found = []
    for number in range(responses):
        prompt = number // per_prompt
        codes = [f"p{prompt}s{step}" for step in range(steps)]
        reference = text(codes, random.Random(prompt))
        rng = random.Random(f"{number} {epoch} {match}")
        matched = steps if match == 1 else int(match * steps) + (rng.random() < match * steps - int(match * steps))
        own = codes[:matched] + [f"n{number}e{epoch}s{step}" for step in range(matched, steps)]
        found.append(Item(f"{epoch}-{number}", f"problem {prompt}", text(own, rng), (reference,)))
    return found


async def released(settings: Gsrm, batches: list[list[Item]], at_once: int) -> list[float]:
    """The released call pattern; sum of weights over the teacher's number of steps, so that rewards can be compared."""
    prompts = Prompts()
    decomposer, judge = (
        Backends(r, b) for r, b in (("decomposer", settings.llm.decomposer), ("judge", settings.llm.judge))
    )
    decomposer._mode = judge._mode = "none"
    for backends in (decomposer, judge):
        for endpoint in backends._endpoints:
            endpoint.verified = True

    async def decompose(problem, reasoning):
        messages = prompts.decomposition(problem, reasoning, "math", "tags").messages
        reply = await decomposer.complete(Request(messages, 10_000), time.monotonic() + 600)
        return schema.read(reply.text, "tags")

    async def same(kind, teacher, student, problem):
        messages = prompts.question(kind, teacher, student, problem).messages
        reply = await judge.complete(Request(messages, 1000), time.monotonic() + 600)
        return reply.text.strip() == "yes"

    async def judged(item, student, teacher):
        async with slots:
            metas = 0
            for mine, theirs in zip(student, teacher):
                if not await same("meta", theirs.meta, mine.meta, item.problem):
                    break
                metas += 1
            weights = [1.0] * metas
            for kind in ("question", "answer"):
                for index, (mine, theirs) in enumerate(zip(student[:metas], teacher[:metas])):
                    if not await same(kind, getattr(theirs, kind), getattr(mine, kind), item.problem):
                        weights[index] /= 2
            return sum(weights) / len(teacher)

    slots = asyncio.Semaphore(at_once)
    try:
        rewards = []
        for batch in batches:
            thinking = [re.sub("</?think>", "", item.response) for item in batch]
            paths = [re.sub("</?think>", "", item.references[0]) for item in batch]
            students = await asyncio.gather(*(decompose(i.problem, t) for i, t in zip(batch, thinking)))
            teachers = await asyncio.gather(*(decompose(i.problem, t) for i, t in zip(batch, paths)))
            rewards += await asyncio.gather(*map(judged, batch, students, teachers))
        return rewards
    finally:
        await decomposer.aclose()
        await judge.aclose()


async def ours(settings: Gsrm, store: Path, batches: list[list[Item]], measure) -> list[dict]:
    core = Scoring(settings, store)
    await core.start()
    try:
        return [await measure(lambda batch=batch: score(core, batch)) for batch in batches]
    finally:
        await core.aclose()


async def score(core: Scoring, batch: list[Item]) -> list[float]:
    results = await asyncio.gather(*(core.score(item, deadline_s=600) for item in batch))
    assert all(result.status == "ok" for result in results), [r.error for r in results if r.error]
    return [result.reward for result in results]


async def main_async(given: argparse.Namespace, urls: dict[str, str]) -> dict:
    async def counters():
        async with httpx2.AsyncClient() as client:
            return {role: (await client.get(url.replace("/v1", "/counters"))).json() for role, url in urls.items()}

    async def measure(work):
        before, begun = await counters(), time.monotonic()
        rewards = await work()
        wall, after = time.monotonic() - begun, await counters()

        def grown(name):
            return sum(after[role].get(name, 0) - before[role].get(name, 0) for role in urls)

        return {
            "calls": grown("calls"),
            "generated_tokens": grown("completion_tokens"),
            "wall_s": wall,
            "rewards": rewards,
        }

    def settings(**llm):
        backends = {
            role: Backend([url], "stand-in", constrain="vllm", max_concurrency=given.slots, timeout_s=600)
            for role, url in urls.items()
        }
        models = LLM(**backends, eager_share=0.0, math_verify_s=0, **llm)
        return Gsrm(decomposer="llm", judge="llm", llm=models)

    found = {}
    for match in (0.3, 1.0):
        batches = [items(given.responses, given.per_prompt, given.steps, match, epoch) for epoch in (1, 2)]
        step = batches[1]
        micro = [step[i : i + given.micro_batch] for i in range(0, len(step), given.micro_batch)]
        sides = {
            "released": [await measure(functools.partial(released, settings(), micro, given.slots))],
            "released, one batch": [await measure(functools.partial(released, settings(), [step], given.slots))],
        }
        with tempfile.TemporaryDirectory() as store:
            sides["ours, lazy"] = await ours(settings(), Path(store) / "lazy", batches, measure)
            sides["ours, together"] = await ours(
                settings(judging="per_response"), Path(store) / "together", batches, measure
            )
        wanted = [round(reward, 9) for reward in sides["released"][0]["rewards"]]
        for name, epochs in sides.items():  # the same rewards, whatever they cost
            assert [round(reward, 9) for reward in epochs[-1]["rewards"]] == wanted, name
        found[f"match {match:.0%}"] = {
            name: [{k: v for k, v in epoch.items() if k != "rewards"} for epoch in epochs]
            for name, epochs in sides.items()
        }
        found[f"match {match:.0%}"]["mean reward"] = sum(wanted) / len(wanted)
    return found


def show(found: dict) -> None:
    for match, sides in found.items():
        base = sides["released"][0]
        print(f"\n{match} (mean reward {sides['mean reward']:.3f})")
        print(f"{'':26}{'LLM calls':>16}{'generated tokens':>22}{'wall s':>16}")
        for name, epochs in sides.items():
            if name == "mean reward":
                continue
            for number, epoch in enumerate(epochs, start=1):
                cells = [f"{epoch[k]:.0f} ({base[k] / epoch[k]:.1f} x)" for k in ("calls", "generated_tokens")]
                cells.append(f"{epoch['wall_s']:.1f} ({base['wall_s'] / epoch['wall_s']:.1f} x)")
                label = name if name.startswith("released") else f"{name}, epoch {number}"
                print(f"{label:26}{cells[0]:>16}{cells[1]:>22}{cells[2]:>16}")


def serve(port: int, given: argparse.Namespace) -> None:
    behaviour = Behaviour(
        first_token_s=given.first_token_s,
        token_s=given.token_s,
        slots=given.slots,
        stream_interval=given.stream_interval,
    )
    app = Endpoint(behaviour, functools.partial(stand_in, same=coded)).app
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(url: str, process: subprocess.Popen) -> None:
    for _ in range(300):
        assert process.poll() is None, "the endpoint has ended"
        try:
            httpx2.get(f"{url}/models")
            return
        except httpx2.ConnectError:
            time.sleep(0.1)
    raise TimeoutError(url)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=int, default=32)
    parser.add_argument("--per-prompt", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--micro-batch", type=int, default=8, help="of the released side")
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--first-token-s", type=float, default=0.1)
    parser.add_argument("--token-s", type=float, default=0.02)
    parser.add_argument("--stream-interval", type=int, default=4, help="tokens an event of a stream, as vLLM's option")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", type=int, metavar="PORT", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given)
        return
    ports = {"decomposer": free_port(), "judge": free_port()}
    command = [sys.executable, __file__, *sys.argv[1:]]
    processes = [subprocess.Popen([*command, "--serve", str(port)]) for port in ports.values()]
    try:
        urls = {role: f"http://127.0.0.1:{port}/v1" for role, port in ports.items()}
        for url, process in zip(urls.values(), processes):
            wait_for(url, process)
        found = asyncio.run(main_async(given, urls))
    finally:
        for process in processes:
            process.terminate()
            process.wait(10)
    show(found)
    if given.out:
        setting = {k: v for k, v in vars(given).items() if k not in ("out", "serve")}
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()[0]}
        given.out.write_text(
            json.dumps({"date": str(date.today()), "setting": setting, "machine": machine, "found": found}, indent=1)
            + "\n"
        )


if __name__ == "__main__":
    main()
