import contextlib
import subprocess
import time
import urllib.error
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
        env=nemo.environment(PYTHONPATH=str(nemo.HERE)), check=True, timeout=120,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folder with teacher.nemo, student.nemo, their tokenizer, prompts and problems."""
    folder = tmp_path_factory.mktemp("models")
    nemo.launch(nemo.HERE / "make_models.py", 1, folder)
    return folder


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
        for _ in range(120):
            assert process.poll() is None, log.read_text()[-4000:]
            with contextlib.suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/reward_model/ready", timeout=2)
                break
            time.sleep(0.5)
        else:
            raise AssertionError("the reward server was not ready after a minute")
        yield process
    finally:
        nemo.stop(process)


@pytest.fixture(scope="session")
def reward_port(models):
    """A reward server for the whole session."""
    port = nemo.free_port()
    with serving(models, port):
        yield port
