"""The end of a rank."""

import subprocess
import sys

import pytest

CODE = """
from rlkd_nemo.launch import rank
rank.enter()
import atexit, sys
class Slow:
    def __del__(self):
        print("taken apart", flush=True)
kept = Slow()
atexit.register(print, "a library's handler")
print("no newline", end="")
rank.leave(int(sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("code", "said"),
    [(0, "no newlinea library's handler\n"), (3, "no newlinea library's handler\n"), (1, "no newline")],
)
def test_exit_handlers_run_and_then_nothing_more(code, said):
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (code, said)
