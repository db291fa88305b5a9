"""Our reward server behind the real Triton binary, asked by NeMo-Aligner's unmodified client and by ours."""

import json
import math
import socketserver
import subprocess
import threading

import pytest

from tests.aligner import nemo_python as nemo
from tests.aligner.conftest import gsrm_service, serving, wait_ready

pytestmark = [*nemo.needed, pytest.mark.timeout(1000)]
SCRIPT = nemo.HERE / "server_client.py"
NAN = float("nan")
# Of 6: all right; the answer wrong (meta counts half of the structure); filler; unknown prompt; right but cut off.
WANTED = [6.0, 1.5, NAN, NAN, 3.0]


def saw(out):
    return {k: v for line in out.splitlines() if line.startswith("SAW ") for k, v in json.loads(line[4:]).items()}


def same(got, wanted):
    return len(got) == len(wanted) and all(
        math.isnan(g) if math.isnan(w) else g == pytest.approx(w) for g, w in zip(got, wanted)
    )


def test_the_unmodified_client_gets_the_rewards_of_requests_of_different_widths(models, reward_port):
    seen = saw(nemo.run(SCRIPT, reward_port, models / "tokenizer", "stock"))
    assert (seen["dtype"], seen["shape"]) == ("torch.float32", [5, 1])
    assert [same(got, want) for got, want in zip(seen["rewards"], [WANTED, WANTED[:2], WANTED])] == [True] * 3, seen


def test_our_client_outlives_the_death_and_return_of_the_server(models):
    port = nemo.free_port()
    command = [nemo.PYTHON, str(SCRIPT), str(port), str(models / "tokenizer"), "ours"]
    out = []

    def until_ready(process):
        for line in process.stdout:
            out.append(line)
            if line.startswith("READY"):
                return
        raise AssertionError("".join(out)[-4000:])

    with serving(models, port):
        # A proxy leads out of the cluster, not to its nodes.
        client = nemo.start(command, stdin=subprocess.PIPE, http_proxy="http://127.0.0.1:1")
        until_ready(client)
    client.stdin.write("gone\n")
    client.stdin.flush()
    until_ready(client)
    with serving(models, port):
        rest, _ = client.communicate("back\n", timeout=400)
    seen = saw("".join(out) + rest)
    assert seen["extra"] == ["prompt_lengths", "sample_ids"]
    assert same(seen["rewards"][0], WANTED), seen
    # Without a server: no reward, in time, and no hung rank; with it again: rewards.
    assert same(seen["gone"], [NAN, NAN]) and seen["seconds"] < 120  # request_timeout_s: 20
    assert same(seen["back"], WANTED[:2])
    # Our client names its rows, and the server's log does.
    assert "row row-3: its prompt belongs to no problem" in (models / f"server-{port}.log").read_text()
    # The unmodified client, made before, finds the new server too.
    assert same(seen["stock_before"], WANTED[:2]) and same(seen["stock_back"], WANTED[:2])


def test_rows_are_named_in_the_servers_log(models, reward_port):
    # Left by the client's unknown prompt above, or by this request of its own.
    text = (models / f"server-{reward_port}.log").read_text()
    assert "its prompt belongs to no problem of this server" in text


def test_a_backend_that_is_dead_gives_no_rewards_but_answers(models):
    # The structure reward comes from a service that does not exist any more: failures of the system, not zeros.
    port, dead = nemo.free_port(), nemo.free_port()
    with gsrm_service(models, dead) as backend, serving(
        models, port, "gsrm.scorer=service", f"gsrm.service.urls=[http://127.0.0.1:{dead}]",
        "gsrm.service.attempts=1", "gsrm.service.deadline_s=30", "gsrm.service.pause_s=1",
    ):  # fmt: skip
        assert same(saw(nemo.run(SCRIPT, port, models / "tokenizer", "stock"))["rewards"][0], WANTED)
        nemo.stop(backend)
        seen = saw(nemo.run(SCRIPT, port, models / "tokenizer", "stock"))
    assert all(math.isnan(reward) for reward in seen["rewards"][0]), seen


def test_nobody_there_is_told_in_seconds(models):
    seen = saw(nemo.run(SCRIPT, nemo.free_port(), models / "tokenizer", "gone"))
    assert seen["refused"] == "BackendUnavailable" and seen["seconds"] < 120
    assert "is not reachable" in seen["message"] and "within 10 s" in seen["message"]


def test_a_port_of_something_else_is_told_at_once(models):
    class Greets(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            self.request.recv(1000)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Greets) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        seen = saw(nemo.run(SCRIPT, server.server_address[1], models / "tokenizer", "gone"))
        server.shutdown()
    assert seen["refused"] == "BadReply" and "does not speak HTTP" in seen["message"], seen


@pytest.fixture(scope="module")
def others(models):
    """What became of requests to models that are no reward models: {name: what}."""
    port = nemo.free_port()
    log = models / f"others-{port}.log"
    names = ["reward_model", "fails", "two_columns", "doubles", "sleeps", "wants_more", "absent"]
    with log.open("w") as output:
        process = nemo.start([nemo.PYTHON, str(nemo.HERE / "other_server.py"), str(port)], output)
    try:
        wait_ready(process, port, f"v2/models/{names[-2]}/ready", log)  # they are loaded in this order
        return saw(nemo.run(SCRIPT, port, models / "tokenizer", ",".join(names)))
    finally:
        nemo.stop(process)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("reward_model", "BadReply", "has inputs {'text': 'BYTES'}; wanted {'tokens': 'INT64'"),
        ("doubles", "BadReply", "has outputs {'rewards': 'FP64'}; wanted {'rewards': 'FP32'}"),
        ("absent", "BadReply", "is ready and has no model absent; see remote_rm.reward_model.name"),
        ("wants_more", "BadReply", "refuses the request"),
        ("fails", "BadReply", "failed the same request 5 times: ArithmeticError: this model cannot score"),
        ("two_columns", "ShapeError", "rewards are float32 (2, 2) for 2 responses; wanted float32 (2, 1)"),
    ],
)
def test_what_no_time_can_heal_is_told_long_before_the_deadline(others, name, error, message):
    found = others[name]
    assert found.get("refused") == error and message in found["message"], found
    assert found["seconds"] < 200  # of the 400 that were allowed


def test_a_server_that_never_answers_costs_its_rows_their_reward(others):
    assert same(others["sleeps"]["rewards"], [NAN, NAN]) and others["sleeps"]["seconds"] < 200, others["sleeps"]
