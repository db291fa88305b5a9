"""The GSRM's service in front of a second real implementation of the endpoints' protocol, `transformers serve`, and the
stock `openai` client at the same one.

It lists no models, names them with a revision, ignores `response_format`, refuses fields that it does not know and ends
streams without [DONE]. Its model has learnt by heart what a stand-in replied, so that a reward can be right.
"""

import asyncio
import json
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from benchmarks.gsrm_endpoint import Behaviour, Endpoint, serving
from rlkd_nemo.config.schema import LLM, Backend, Gsrm
from rlkd_nemo.errors import BadReply
from rlkd_nemo.gsrm.service import chat
from rlkd_nemo.gsrm.service.backends import Backends
from rlkd_nemo.gsrm.service.chat import Choice, Request
from rlkd_nemo.gsrm.service.scoring import Scoring
from tests.gsrm.service.serving import item, running

HERE = Path(__file__).parent
PYTHON = os.environ.get("RLKD_SERVING_PYTHON")
pytestmark = [
    pytest.mark.serving,
    pytest.mark.skipif(
        not PYTHON, reason="needs transformers[serving] and openai in their own environment: make test-serving"
    ),
]
STEPS = ["add the numbers: what is 2 + 3 = 5", "double it: what is 2 * 5 = 10"]
REFERENCE = "<think>" + "\n".join(STEPS) + "</think>10"
ITEMS = {
    "same": REFERENCE,
    "other step": "<think>" + "\n".join([STEPS[0], "square it: what is 5 * 5 = 25"]) + "</think>25",
    "wrong answer": "<think>" + "\n".join([STEPS[0], STEPS[1].replace("10", "11")]) + "</think>11",
}
REWARDS = {"same": 1.0, "other step": 0.5, "wrong answer": 0.75}
# Short prompts in place of the package's: what is learnt by heart here is to be little.
TEMPLATES = {
    "decompose_system.jinja": "Steps.{% if domain == form == labels == no_steps %}{% endif %}",
    "decompose_user.jinja": "The material is marked with the word {{ boundary }}.\n{{ fenced(problem) }}\n"
    "{{ fenced(text) }}\napart.",
    "judge_system.jinja": "Same {{ kind }}?",
    "judge_user.jinja": "The material is marked with the word {{ boundary }}.\n{{ fenced(problem) }}\n{{ fenced(teacher) }}\n"
    "{{ fenced(student) }}\nyes or no",
    "math.examples.json": "[]",
}


def settings(url, model, prompts):
    backend = Backend(urls=[url], model=model, attempts=1, constrain="none")
    llm = LLM(decomposer=backend, judge=backend, prompts=str(prompts), max_tokens=200, lazy="off")
    return Gsrm(decomposer="llm", judge="llm", llm=llm)


def scored(gsrm, directory):
    """What our server says of every item, in front of these endpoints."""
    with running(Scoring(gsrm, directory / "store"), directory) as server:
        return server.score(*(item(name, text, "p", (REFERENCE,)) for name, text in ITEMS.items()))


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """Folder of prompts, folder of the model, and the conversations that it knows."""
    from tests.serving.memorise import memorise  # here: where this file is skipped, transformers is not waited for

    directory = tmp_path_factory.mktemp("serving")
    prompts = directory / "prompts"
    prompts.mkdir()
    for name, text in TEMPLATES.items():
        (prompts / name).write_text(text)
    stand_in = Endpoint(Behaviour(constrains=()))
    heard = {}
    reply_of = stand_in._reply

    def listen(asked):
        reply = reply_of(asked)
        heard[json.dumps(asked["messages"])] = reply
        return reply

    stand_in._reply = listen
    with serving(stand_in) as url:
        found = scored(settings(url, "stand-in", prompts), directory / "stand-in")
    assert {name: entry["reward"] for name, entry in found.items()} == REWARDS
    conversations = [(json.loads(messages), reply) for messages, reply in heard.items()]
    memorise(conversations, directory / "model")
    return prompts, directory / "model", conversations


@pytest.fixture(scope="module")
def url(learnt, tmp_path_factory):
    """A real server of that model."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "serve.log"
    program = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    command = [
        PYTHON,
        "-c",
        program,
        "serve",
        str(learnt[1]),
        "--device",
        "cpu",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    outside = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with log.open("w") as file:
        process = subprocess.Popen(command, env={**outside, "HF_HUB_OFFLINE": "1"}, stdout=file, stderr=file)
        try:
            end = time.monotonic() + 180
            while True:
                assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
                with socket.socket() as probe:
                    probe.settimeout(1)
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)


@pytest.mark.timeout(600)
def test_our_server_gives_the_same_rewards_in_front_of_it(learnt, url, tmp_path):
    prompts, model, _ = learnt
    found = scored(settings(url, str(model), prompts), tmp_path)
    assert {name: (entry["status"], entry["reward"]) for name, entry in found.items()} == {
        name: ("ok", reward) for name, reward in REWARDS.items()
    }


@pytest.mark.timeout(600)
def test_what_it_constrains_is_found_out_and_streams_are_read(learnt, url):
    _, model, conversations = learnt
    messages, reply = max(conversations, key=lambda pair: len(pair[1]))

    async def ask():
        backends = Backends("judge", Backend(urls=[url], model=str(model), attempts=1))
        await backends.start()
        pieces = []
        try:
            whole = await backends.complete(Request(messages, 200), time.monotonic() + 60)
            streamed = await backends.stream(Request(messages, 200), time.monotonic() + 60, pieces.append)
            cut = await backends.complete(Request(messages, 3), time.monotonic() + 60)
            # Text that it has not learnt: whatever comes is no verdict, and says so.
            other = Request([{"role": "user", "content": "?"}], 5, Choice(("yes", "no")))
            said = await backends.complete(other, time.monotonic() + 60)
            return backends.mode, whole, streamed, "".join(pieces), cut, said
        finally:
            await backends.aclose()

    mode, whole, streamed, pieces, cut, said = asyncio.run(ask())
    assert mode == "none"  # `response_format` is ignored with 200, vLLM's field refused with 422
    assert whole.text == streamed.text == pieces == reply
    assert whole.finish == streamed.finish == "stop" and cut.finish == "length"
    assert whole.prompt_tokens > 10 and whole.completion_tokens > 5
    assert said.text and chat.chosen(said.text, ("yes", "no"), mode) is None, said.text


@pytest.mark.timeout(600)
def test_a_model_that_it_does_not_serve_is_told(learnt, url):
    async def ask():
        backends = Backends("judge", Backend(urls=[url], model="gsrm", attempts=1, constrain="none"))
        await backends.start()
        try:
            await backends.complete(Request([{"role": "user", "content": "?"}], 3), time.monotonic() + 60)
        finally:
            await backends.aclose()

    with pytest.raises(BadReply, match="pinned"):
        asyncio.run(ask())


@pytest.mark.timeout(600)
def test_the_stock_openai_client_gets_the_same_from_it(learnt, url):
    _, model, conversations = learnt
    messages, reply = max(conversations, key=lambda pair: len(pair[1]))
    done = subprocess.run(
        [PYTHON, str(HERE / "openai_side.py"), url, str(model)],
        input=json.dumps(messages),
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["text"], said["streamed"], said["finish"]) == (reply, reply, "stop")
