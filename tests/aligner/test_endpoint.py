import concurrent.futures
import contextlib
import http.server
import socketserver
import threading
import time

import pytest

from rlkd_nemo.aligner import endpoint
from rlkd_nemo.aligner.endpoint import Verdict, inspect, verdict, wait_ready
from rlkd_nemo.errors import BackendUnavailable, BadReply

LONG = 600.0  # a deadline that no test may wait for
SIGNATURE = (
    b'{"inputs": [{"name": "tokens", "datatype": "INT64"}, {"name": "sequence_lengths", "datatype": "INT64"}, '
    b'{"name": "prompt_lengths", "datatype": "INT64"}], "outputs": [{"name": "rewards", "datatype": "%s"}]}'
)


@contextlib.contextmanager
def answering(answer):
    """A server on loopback; `answer(path)` gives (status, body). Yields its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, body = answer(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:  # its thread would spin on the closed socket
            server.shutdown()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(endpoint, "POLL_S", 0.01)
    monkeypatch.setattr(endpoint, "MODEL_GRACE_S", 0.2)


def test_a_model_of_the_protocol_tells_what_more_it_takes():
    with answering(lambda path: (200, SIGNATURE % b"FP32")) as url:
        assert inspect(url, "reward_model", LONG) == ("prompt_lengths",)


def test_rewards_of_another_dtype_are_refused():
    with answering(lambda path: (200, SIGNATURE % b"FP64")) as url, pytest.raises(BadReply, match=r"rewards.*FP64"):
        inspect(url, "reward_model", LONG)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("status", [401, 403, 404, 405])
def test_what_is_no_triton_or_wants_a_login_is_told_at_once(status):
    with answering(lambda path: (status, b"")) as url, pytest.raises(BadReply, match=f"HTTP {status}.*neither login"):
        wait_ready(url, "reward_model", LONG)


@pytest.mark.timeout(60)
def test_a_login_for_the_model_alone_is_told_at_once():
    with answering(lambda path: (200 if "health" in path else 403, b"")) as url, pytest.raises(BadReply, match="403"):
        wait_ready(url, "reward_model", LONG)


@pytest.mark.timeout(60)
def test_what_does_not_speak_http_is_told_at_once():
    class Greets(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            self.request.recv(1000)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Greets) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            with pytest.raises(BadReply, match=r"does not speak HTTP.*OpenSSH"):
                wait_ready(f"http://127.0.0.1:{server.server_address[1]}", "reward_model", LONG)
        finally:
            server.shutdown()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("status", [400, 404])
def test_a_ready_server_without_the_model_is_told_after_the_grace_of_its_loading(status):
    with answering(lambda path: (200 if "health" in path else status, b"")) as url:
        started = time.monotonic()
        with pytest.raises(BadReply, match=r"is ready and has no model reward_modle; see remote_rm.reward_model.name"):
            wait_ready(url, "reward_modle", LONG)
        assert time.monotonic() - started >= 0.2


@pytest.mark.timeout(60)
def test_a_server_that_is_loading_is_waited_for():
    # As Triton does: not ready, ready without the model, not ready while it loads, then ready; a gateway's 503 before.
    states = iter([503, 400, 200, 400, 400])
    asked = []

    def answer(path):
        if "health" not in path:
            return (200 if len(asked) > 5 else 400), b""
        asked.append(path)
        return next(states, 200), b""

    with answering(answer) as url:
        wait_ready(url, "reward_model", LONG)
    assert len(asked) == 6


def test_nobody_there_is_told_when_the_time_is_over():
    with pytest.raises(BackendUnavailable, match=r"is not reachable .*within 0.1 s.*remote_rm.ready_timeout_s"):
        wait_ready("http://127.0.0.1:1", "reward_model", 0.1)


class InferenceError(Exception):
    """As PyTriton's, whose cause is tritonclient's with the HTTP status as text."""


class PyTritonClientTimeoutError(Exception):
    """A name of PyTriton's."""


class Status(Exception):
    def __init__(self, status):
        self.code = status

    def status(self):
        return self.code


def caused(status, message):
    error = InferenceError(message)
    error.__cause__ = Status(status)
    return error


TRACEBACK = (
    'Traceback ...\n  File "model.py", line 6, in infer\nValueError: lengths up to 9\n\n\n\nAt:\n  /model.py(501)\n'
)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (caused("400", "expected 1 inputs but got 2"), Verdict.REFUSED, "expected 1 inputs but got 2"),
        (caused("401", ""), Verdict.REFUSED, "no message"),
        (caused("500", TRACEBACK), Verdict.FAILED, "ValueError: lengths up to 9"),
        (caused("503", "unavailable"), Verdict.FAILED, "unavailable"),
        (caused("429", "slower"), Verdict.FAILED, "slower"),
        (caused(None, "decoupled"), Verdict.OURS, "decoupled"),
        (PyTritonClientTimeoutError("connection refused"), Verdict.AWAY, "connection refused"),
        (concurrent.futures.TimeoutError(), Verdict.AWAY, "no message"),
        (ConnectionResetError("reset"), Verdict.AWAY, "reset"),
        (RuntimeError("Unicode inputs are not supported"), Verdict.OURS, "Unicode inputs are not supported"),
    ],
)
def test_what_became_of_a_request(error, kind, said):
    assert verdict(error) == (kind, said)
