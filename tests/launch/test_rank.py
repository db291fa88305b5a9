"""The end of a rank."""

import os
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
        [sys.executable, "-c", CODE, str(code)], capture_output=True, text=True, timeout=240, check=False
    )
    assert (done.returncode, done.stdout) == (code, said)


@pytest.mark.parametrize("code", [0, 3, 1])
def test_the_code_stays_when_nobody_reads_any_more(code):
    read, write = os.pipe()
    os.close(read)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with os.fdopen(write, "w") as gone:
        command = [sys.executable, "-c", CODE, str(code)]
        done = subprocess.run(command, stdout=gone, env=buffered, timeout=240, check=False)
    assert done.returncode == code


ASKED = """
import os, pathlib, sys
from rlkd_nemo.launch import rank
from rlkd_nemo.lifecycle import signals
os.environ[rank.REPORTS] = sys.argv[1]
rank.enter()
print(signals.stop_requested())
"""


@pytest.mark.parametrize("asked", [True, False])
def test_a_rank_that_was_asked_to_stop_before_it_could_hear_it_knows(tmp_path, asked):
    if asked:
        (tmp_path / "stop").touch()
    command = [sys.executable, "-c", ASKED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout == f"{asked}\n" and (tmp_path / "0.ready").exists()


TWO_WORDS = """
import json, os, pathlib, sys, threading, time
from rlkd_nemo.launch import rank
os.environ[rank.REPORTS] = sys.argv[1]
plain = pathlib.Path.write_text
def slow(self, text):
    plain(self, text)
    time.sleep(0.3)
pathlib.Path.write_text = slow
words = threading.Thread(target=rank.report, args=(1, "the first"))
words.start()
while not list(pathlib.Path(sys.argv[1]).iterdir()): pass  # half of it; on a machine that slept meanwhile all of it
rank.report(2, "the second")
words.join()
print(json.loads((pathlib.Path(sys.argv[1]) / "0.json").read_text())["message"])
"""


def test_two_threads_that_report_at_once_leave_the_first_word(tmp_path):
    command = [sys.executable, "-c", TWO_WORDS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stdout) == (0, "the first\n"), done.stderr
