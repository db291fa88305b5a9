"""Real ranks for tests: `launch` runs a script on n of them and returns what they printed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Ends what hangs, not what is slow: on a busy machine a test takes ten times as long as alone.
PATIENCE_S = 600
_START = "import sys; from rlkd_nemo.launch.local import run_ranks; _, n, script, *args = sys.argv;" + (
    "sys.exit(run_ranks(script, args, int(n)))"
)


def launch(script, n, *args, timeout=PATIENCE_S, gpu=False):
    """Run `script args...` on `n` CPU ranks, or ranks with a GPU each; its stdout.

    AssertionError with all output if a rank fails or hangs.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if not gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-c", _START, str(n), str(script), *map(str, args)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, err = process.communicate(timeout=timeout)
        ended = f"code {process.returncode}"
    except subprocess.TimeoutExpired:
        ended = f"no end after {timeout} s"
        out, err = _stop(process)
    if process.returncode != 0:
        raise AssertionError(
            f"{Path(script).name} on {n} ranks: {ended}\n--- stdout\n{out[-4000:]}\n--- stderr\n{err[-8000:]}"
        )
    return out


def _stop(process):
    # Twice: the first asks the ranks to save, the second ends them.
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        try:
            return process.communicate(timeout=2)
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    return process.communicate()
