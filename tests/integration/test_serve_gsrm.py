"""examples/serve_gsrm.py as a process: it says where it listens, answers, and ends as it should."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

ROOT = Path(__file__).resolve().parents[2]
PATH = "a:1+2=3;c:3*4=2;b:3-2=1;</think><answer>1</answer>"


@contextlib.contextmanager
def serving(directory, *overrides, **environment):
    """The example in a process of its own: (process, url)."""
    command = [
        sys.executable, str(ROOT / "examples/serve_gsrm.py"), "gsrm.server.port=0", f"exp_manager.exp_dir={directory}",
        *overrides,
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
    try:
        first = json.loads(process.stderr.readline())
        assert first["message"].startswith("listening on http://"), first
        yield process, first["message"].split()[2].rstrip(",")
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_it_serves_until_sigterm(tmp_path):
    body = {"items": [{"id": "a", "problem": "(1a+2)b-(3c*4)=<think>", "response": PATH, "references": [PATH]}]}
    headers = {"authorization": "Bearer hush"}
    with serving(tmp_path, RLKD_GSRM_TOKEN="hush") as (process, url):
        assert httpx2.post(f"{url}/score", json=body, timeout=60).status_code == 401
        (entry,) = httpx2.post(f"{url}/score", json=body, headers=headers, timeout=60).json()["items"]
        assert (entry["reward"], entry["matched"], len(entry["steps"])) == (1.0, 3, 3)
        rules = httpx2.get(f"{url}/ready", timeout=60).json()["rules"]
        assert rules == {"reference_mode": "first", "alignment": "prefix", "norm": "teacher"}
        port = url.rsplit(":", 1)[1]
        second = subprocess.run(
            [sys.executable, str(ROOT / "examples/serve_gsrm.py"), f"gsrm.server.port={port}"],
            capture_output=True, text=True, timeout=150, check=False,
        )  # fmt: skip
        assert second.returncode == 2 and f"port={port} cannot be listened on" in second.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "SIGTERM" in process.stderr.read()


@pytest.mark.parametrize("wrong", ["gsrm.server.host=0.0.0.0", "gsrm.server.prot=1"])
def test_wrong_settings_end_with_code_2(wrong, tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/serve_gsrm.py"), wrong, f"exp_manager.exp_dir={tmp_path}"],
        capture_output=True, text=True, timeout=150, check=False,
        env={key: value for key, value in os.environ.items() if key != "RLKD_GSRM_TOKEN"},
    )  # fmt: skip
    assert done.returncode == 2 and ("RLKD_GSRM_TOKEN" in done.stderr or "did you mean" in done.stderr)


def test_the_readme_is_enough_for_a_plain_client(tmp_path):
    section = (ROOT / "README.md").read_text().split("## Structure rewards over HTTP")[1].split("\n## ")[0]
    script = section.split("```bash\n")[1].split("```")[0]
    with serving(tmp_path, RLKD_GSRM_TOKEN="hush") as (_, url):
        # Each answer on a line of its own.
        script = script.replace("http://127.0.0.1:8700", url).replace("curl -s", "echo; curl -s --fail-with-body")
        done = subprocess.run(
            ["bash", "-e", "-c", script], capture_output=True, text=True, timeout=150, check=False,
            env={**os.environ, "RLKD_GSRM_TOKEN": "hush"},
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    ready, references, scored = (json.loads(line) for line in done.stdout.splitlines() if line)
    assert ready["ready"] and references["items"][0]["steps"] == [2]
    assert references["items"][0]["reference_id"] in script  # the very id that the next call uses
    a, b = scored["items"]
    told = section.split("```")[-1]
    for entry, keys in ((a, ("status", "reward", "matched")), (b, ("failure",))):
        for key in keys:
            assert f'"{key}": {json.dumps(entry[key])}' in told, (key, entry[key])
    assert b["reward"] == 0
