import contextlib
import os
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.aligner import nemo_python as nemo

SERVE = nemo.ROOT / "examples" / "aligner" / "serve_gsrm_reward_model.py"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """Folder of the tiny tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    subprocess.run(
        [nemo.PYTHON, "-c", "import sys, tiny; tiny.make_tokenizer(sys.argv[1])", str(folder)],
        env=nemo.environment(PYTHONPATH=str(nemo.HERE)), check=True, timeout=400,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folder with teacher.nemo, student.nemo, their tokenizer, prompts and problems."""
    folder = tmp_path_factory.mktemp("models")
    nemo.launch(nemo.HERE / "make_models.py", 1, folder)
    return folder


def wait_ready(process, port, path="v2/models/reward_model/ready", log=None):
    """Return once a server answers; AssertionError with its log if it ends before."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()[-4000:] if log else f"ended with code {process.returncode}"
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=2).close()
            return
        time.sleep(0.5)
    raise AssertionError("the server was not ready after five minutes")


@contextlib.contextmanager
def serving(models, port, *changes):
    """The shipped reward server on `port`, ready."""
    command = [
        nemo.PYTHON, str(SERVE), f"inference.port={port}", f"tokenizer.type={models / 'tokenizer'}",
        f"task.path={models / 'problems.jsonl'}", "reward.format=0", "reward.tag=0",
        f"gsrm.reference_store={models / 'references'}", f"hydra.run.dir={models / 'hydra'}", *changes,
    ]  # fmt: skip
    log = models / f"server-{port}.log"
    with log.open("a") as output:  # nobody reads a pipe while tests run
        process = nemo.start(command, output)
    try:
        wait_ready(process, port, log=log)
        yield process
    finally:
        nemo.stop(process)


@contextlib.contextmanager
def gsrm_service(models, port):
    """The GSRM as a service of the main environment, scoring by rules."""
    command = [
        sys.executable, str(nemo.ROOT / "examples" / "serve_gsrm.py"), f"gsrm.server.port={port}", "task=prompts",
        f"task.path={models / 'problems.jsonl'}", "model.tokenizer.library=bytes", f"exp_manager.exp_dir={models}",
    ]  # fmt: skip
    with (models / f"service-{port}.log").open("w") as output:
        process = subprocess.Popen(
            command, cwd=nemo.ROOT, env={**os.environ, "PYTHONPATH": str(nemo.ROOT)}, stdout=output,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
    try:
        wait_ready(process, port, "ready", models / f"service-{port}.log")
        yield process
    finally:
        nemo.stop(process)


@pytest.fixture(scope="session")
def reward_port(models):
    """A reward server for the whole session."""
    port = nemo.free_port()
    with serving(models, port):
        yield port
