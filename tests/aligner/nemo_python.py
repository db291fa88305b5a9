"""Runs scripts by the Python that has NeMo-Aligner, and says where there is none."""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
PYTHON = os.environ.get("RLKD_ALIGNER_PYTHON")
MARK = "RLKD_TEST_RUN"  # in the environment of all that one run starts
needed = [
    pytest.mark.aligner,
    pytest.mark.skipif(not PYTHON, reason="needs NeMo-Aligner in an environment of its own: make test-aligner"),
]


def environment(**more):
    """For a process of the other environment; Triton's stub looks for libpython where the interpreter's own is."""
    libraries = subprocess.run(
        [PYTHON, "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"], capture_output=True, text=True
    ).stdout.strip()
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LD_LIBRARY_PATH": libraries, **more}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(command, output=subprocess.PIPE, stdin=None, **more):
    """The process, in a group of its own."""
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(**more), stdin=stdin, stdout=output, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def stop(process):
    """End the process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[0]


def run(script, *args, timeout=800, code=0, **more):
    """Output of one process that is expected to end with `code`."""
    return _finish([PYTHON, str(script), *map(str, args)], Path(script).name, timeout, code, more)


def launch(script, ranks, *args, timeout=800, code=0, **more):
    """Output of `script args...` on so many CPU ranks."""
    torchrun = [
        PYTHON,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        str(ranks),
        "--master_port",
        str(free_port()),
    ]
    command = [*torchrun, str(script), *map(str, args)]
    return _finish(command, f"{Path(script).name} on {ranks} ranks", timeout, code, more)


def _end_helpers(name):
    """Saving starts helpers, which outlive a rank that is killed: torchrun gave each rank a session of its own."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"{MARK}={name}\0".encode() in (entry / "environ").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)


def _finish(command, what, timeout, code, more):
    name = uuid.uuid4().hex
    # A file, for helpers of a rank that died without a word would keep a pipe open.
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = start(command, output, **{MARK: name}, **more)
        try:
            ended = f"code {process.wait(timeout)}"
        except subprocess.TimeoutExpired:
            ended = f"no end after {timeout} s"
        finally:
            stop(process)
            _end_helpers(name)
        output.seek(0)
        out = output.read()
    if ended != f"code {code}":
        raise AssertionError(f"{what}: {ended}, wanted code {code}\n{out[-8000:]}")
    return out
