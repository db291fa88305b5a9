"""What a step's ranks left, and whether a service answers."""

import http.server
import json
import socket
import threading

import pytest

from rlkd_nemo.launch.slurm.ends import judge
from rlkd_nemo.launch.slurm.ready import await_ready


def leave(folder, rank, code, message="", time=1.0):
    words = {"code": code, "message": message, "deliberate": True, "time": time}
    (folder / f"{rank}.json").write_text(json.dumps(words))


def test_all_is_well(tmp_path, capsys):
    leave(tmp_path, 0, 0)
    leave(tmp_path, 1, 0)
    assert judge(tmp_path, 2, 0) == 0 and capsys.readouterr().err == ""
    assert judge(tmp_path, 2, 139) == 139  # a crash after the last word


def test_saved_ranks_agree_on_3(tmp_path, capsys):
    leave(tmp_path, 0, 3, "stopped after step 4")
    leave(tmp_path, 1, 3, "stopped after step 4")
    assert judge(tmp_path, 2, 3) == 3
    assert capsys.readouterr().err == "stopped after step 4\n"


def test_the_first_failure_is_the_cause(tmp_path, capsys):
    leave(tmp_path, 0, 1, "a peer is gone", 2.0)
    leave(tmp_path, 1, 2, "the config is wrong", 1.0)
    assert judge(tmp_path, 2, 137) == 2
    assert capsys.readouterr().err.startswith("the config is wrong\nrank 0 failed after that: a peer is gone")


def test_a_rank_without_a_word_is_named_with_its_last_lines(tmp_path, capsys):
    leave(tmp_path, 0, 1, "rank 1 has given no sign of life")
    (tmp_path / "1.ready").touch()
    (tmp_path / "1.beat").write_text(json.dumps({"stage": "update", "log": ["12:00 step 7"]}))
    assert judge(tmp_path, 2, 137) == 1
    assert "rank 1 was ended without a word, in update" in (said := capsys.readouterr().err)
    assert "12:00 step 7" in said and "no sign of life" in said


def test_a_rank_that_never_began(tmp_path, capsys):
    assert judge(tmp_path, 1, 1) == 1
    assert "rank 0 was ended without a word, before it was ready" in capsys.readouterr().err


@pytest.fixture
def service():
    answers = [503, 503, 200]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(answers.pop(0) if len(answers) > 1 else answers[0])
            self.end_headers()
            self.wfile.write(b"loading")

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/ready", answers
    server.shutdown()
    server.server_close()


def test_a_service_is_waited_for(service, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # leads out of the cluster, not to its nodes
    url, answers = service
    assert await_ready(url, 20.0) is None and answers == [200]


def test_a_service_that_does_not_answer_in_time(service):
    url, answers = service
    answers[:] = [503]
    assert await_ready(url, 0.3).startswith("503 loading")
    assert "refused" in await_ready("http://127.0.0.1:1/", 0.0)


def test_a_port_of_something_else_is_no_answer():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet():
            peer = server.accept()[0]
            peer.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            peer.recv(1000)

        threading.Thread(target=greet, daemon=True).start()
        assert "SSH" in await_ready(f"http://127.0.0.1:{server.getsockname()[1]}/ready", 0.0)
