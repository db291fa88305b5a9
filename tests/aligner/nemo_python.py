"""Runs scripts by the Python that has NeMo-Aligner, and says where there is none."""

import contextlib
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
PYTHON = os.environ.get("RLKD_ALIGNER_PYTHON")
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


def run(script, *args, timeout=400, code=0, **more):
    """Output of one process that is expected to end with `code`."""
    return _finish(start([PYTHON, str(script), *map(str, args)], **more), script, timeout, code)


def launch(script, ranks, *args, timeout=400, code=0, **more):
    """Output of `script args...` on so many CPU ranks."""
    return _finish(start_ranks(script, ranks, *args, **more), f"{Path(script).name} on {ranks} ranks", timeout, code)


def start_ranks(script, ranks, *args, **more):
    torchrun = [
        PYTHON,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        str(ranks),
        "--master_port",
        str(free_port()),
    ]
    return start([*torchrun, str(script), *map(str, args)], **more)


def _finish(process, what, timeout, code):
    try:
        out, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"{what}: no end after {timeout} s\n{stop(process)[-6000:]}") from None
    if process.returncode != code:
        raise AssertionError(f"{what}: code {process.returncode}, wanted {code}\n{out[-8000:]}")
    return out
