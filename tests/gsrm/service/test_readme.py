"""The README's own example drives the server: its commands are run as they stand there, but for the port."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from tests.gsrm.service.serving import until

ROOT = Path(__file__).parents[3]


def block():
    """The bash block of the section on structure rewards."""
    section = (ROOT / "README.md").read_text().split("## Structure rewards over HTTP")[1]
    return re.search(r"```bash\n(.*?)```", section, re.DOTALL)[1]


@pytest.fixture
def server(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "examples/serve_gsrm.py", f"gsrm.server.port={port}"]
    environment = {**os.environ, "RLKD_GSRM_TOKEN": "a secret"}
    process = subprocess.Popen([*command, f"exp_manager.exp_dir={tmp_path}"], cwd=ROOT, env=environment)

    def ready():
        assert process.poll() is None, "the server ended"
        try:
            return httpx2.get(f"http://127.0.0.1:{port}/ready", timeout=30).status_code == 200
        except httpx2.HTTPError:
            return False

    try:
        until(ready, seconds=240)
        yield port, environment
        process.terminate()
        assert process.wait(240) == 0
    finally:
        process.kill()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_examples_commands_score(server):
    port, environment = server
    commands = block()
    assert commands.count(":8700/") == commands.count("curl") == 3
    ran = subprocess.run(
        ["bash", "-euc", commands.replace(":8700/", f":{port}/")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stderr
    ready, references, scores = (json.loads(text) for text in re.split(r"(?<=\})\s*(?=\{\")", ran.stdout) if text)
    assert ready["ready"] is True
    assert references["items"][0]["reference_id"] in commands  # the README knows it before the server says it
    found = {entry["id"]: entry for entry in scores["items"]}
    assert (found["a"]["status"], found["a"]["reward"], found["a"]["matched"]) == ("ok", 0.25, 1)
    assert (found["b"]["reward"], found["b"]["failure"]) == (0.0, "unparseable_student")
    # Without the token nothing is scored.
    bare = {**environment, "RLKD_GSRM_TOKEN": "wrong"}
    refused = subprocess.run(
        ["bash", "-euc", commands.replace(":8700/", f":{port}/")], env=bare, capture_output=True, text=True, timeout=240
    )
    assert refused.stdout.count("unauthorized") == 2
