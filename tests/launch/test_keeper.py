"""The keeper of a node's services."""

import os
import signal
import subprocess
import sys
import time

import pytest

from rlkd_nemo.config.load import load
from rlkd_nemo.errors import Preempted, ServiceError
from rlkd_nemo.launch import keeper
from rlkd_nemo.lifecycle import signals

FOREVER = [sys.executable, "-c", "import time; time.sleep(600)"]


def test_what_runs_on_which_node():
    cfg = load("rlkd_demo", [
        "gsrm=vllm", "layout.gsrm.nodes=2", "layout.gsrm.gpus_per_node=4",
        "layout.gsrm.decomposer.replicas=2", "layout.gsrm.decomposer.weights=models/gsrm",
        "layout.gsrm.decomposer.tensor_parallel_size=2", "layout.gsrm.judge.replicas=1", "layout.gsrm.judge.weights=models/judge",
    ])  # fmt: skip
    first, second = (keeper.commands(cfg, node, ["--config-name=x"]) for node in (0, 1))
    assert list(first) == ["decomposer on port 8000", "decomposer on port 8001", "GSRM server"]
    command, own = first["decomposer on port 8001"]
    assert command[:3] == ["vllm", "serve", "models/gsrm"] and own == {"CUDA_VISIBLE_DEVICES": "2,3"}
    assert command[command.index("--served-model-name") + 1] == cfg.gsrm.llm.decomposer.model
    assert first["GSRM server"][0][1:] == ["examples/serve_gsrm.py", "--config-name=x"]
    assert list(second) == ["judge on port 8100"]


@pytest.mark.parametrize(("nodes", "host"), [(1, "127.0.0.1"), (2, "0.0.0.0")])
def test_models_are_no_more_open_than_they_must_be(nodes, host, monkeypatch):
    monkeypatch.setenv("VLLM_SECRET", "s3cret")
    cfg = load("rlkd_demo", [
        "gsrm=vllm", f"layout.gsrm.nodes={nodes}", "layout.gsrm.gpus_per_node=1", "layout.gsrm.judge.replicas=1",
        "layout.gsrm.judge.weights=w", "gsrm.llm.judge.api_key_env=VLLM_SECRET",
    ])  # fmt: skip
    command, own = keeper.commands(cfg, 0, [])["judge on port 8100"]
    assert command[command.index("--host") + 1] == host
    assert own["VLLM_API_KEY"] == "s3cret" and not any("s3cret" in word for word in command)


def test_a_program_that_is_not_there_is_named():
    with pytest.raises(ServiceError, match=r"judge cannot be started: no-such-vllm: No such file.*layout.gsrm.image"):
        keeper.keep({"judge": (["no-such-vllm"], {})}, 1.0)


def test_one_that_ends_ends_the_others(tmp_path):
    pid = tmp_path / "pid"
    pid.touch()
    tells = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    waits = f"import os, sys\nwhile not os.path.getsize({str(pid)!r}): pass\nsys.exit(7)"
    other, dies = ([sys.executable, "-c", code] for code in (tells, waits))
    with pytest.raises(ServiceError, match="judge ended with code 7"):
        keeper.keep({"server": (other, {}), "judge": (dies, {})}, 5.0)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_told_to_stop_they_are_asked_and_then_ended(monkeypatch):
    asked = time.monotonic()
    monkeypatch.setattr(signals, "stop_requested", lambda: time.monotonic() - asked > 0.5)
    deaf = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"]
    with pytest.raises(Preempted):
        keeper.keep({"server": (FOREVER, {}), "deaf": (deaf, {})}, 0.3)


def test_however_it_dies_its_services_die_too():
    service = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    code = (
        "import sys; from rlkd_nemo.launch import keeper\n"
        f"keeper.keep({{'server': ([sys.executable, '-c', {service!r}], {{}})}}, 5.0)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert int(process.stdout.readline()) != process.pid
    process.send_signal(signal.SIGKILL)
    # The service holds the other end of the pipe: this comes back once it is gone, whoever waits for it then.
    assert process.stdout.read() == ""
    process.wait()
    process.stdout.close()
