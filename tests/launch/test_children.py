"""Programs started for a while: waited for with a deadline, and gone in every way out."""

import os
import signal
import subprocess
import sys
import time

import pytest

from rlkd_nemo.errors import Preempted, RlkdError
from rlkd_nemo.launch.children import Children

# A program with a child of its own, which ignores SIGTERM; both write their ids.
FAMILY = """
import os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
other = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
other.stdout.readline()
(folder / "child.tmp").write_text(str(other.pid)); (folder / "child.tmp").rename(folder / "child")
time.sleep(60)
"""


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it ended before, or between opening and reading
        return False


def gone(pid, within=40.0):
    end = time.monotonic() + within
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


def text_of(path):
    return path.read_text() if path.exists() else None


@pytest.mark.parametrize("way_out", ["end", "error", "interrupt"])
def test_nothing_is_left_in_any_way_out(way_out, tmp_path):
    errors = {"error": ValueError, "interrupt": KeyboardInterrupt}
    try:
        with Children() as children:
            process = children.start("family", [sys.executable, "-c", FAMILY, str(tmp_path)])
            child = int(children.ready("family", process, lambda: text_of(tmp_path / "child"), 30))
            assert alive(child) and alive(process.pid)
            if way_out in errors:
                raise errors[way_out]
    except (ValueError, KeyboardInterrupt):
        pass
    assert process.returncode == -signal.SIGTERM and gone(child)


def test_it_ends_with_its_starter_even_when_that_is_killed(tmp_path):
    code = (
        "import sys, time; from rlkd_nemo.launch.children import Children\n"
        "with Children() as c:\n"
        "    p = c.start('sleeper', [sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "    print(p.pid, flush=True); time.sleep(60)"
    )
    starter = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(starter.stdout.readline())
    starter.kill()
    starter.wait()
    starter.stdout.close()
    assert gone(pid)


def test_a_program_that_dies_before_it_is_ready_is_told_with_its_last_lines(tmp_path):
    with Children() as children:
        command = [sys.executable, "-c", "print('loading'); raise SystemExit('no such model')"]
        process = children.start("server", command, log_file=tmp_path / "log" / "server.log")
        began = time.monotonic()
        with pytest.raises(RlkdError, match=r"(?s)server ended with code 1 before it was ready.*no such model"):
            children.ready("server", process, lambda: None, 60)
        assert time.monotonic() - began < 30


def test_a_deadline(tmp_path):
    with Children() as children:
        process = children.start("server", [sys.executable, "-c", "import time; time.sleep(60)"])
        with pytest.raises(RlkdError, match=r"server was not ready within 0\.2 s"):
            children.ready("server", process, lambda: None, 0.2)


def test_run_waits_and_says_how_it_ended():
    with Children() as children:
        children.run("good", [sys.executable, "-c", ""])
        with pytest.raises(RlkdError, match="bad ended with code 7"):
            children.run("bad", [sys.executable, "-c", "raise SystemExit(7)"])
        with pytest.raises(RlkdError, match="killed was ended by SIGKILL"):
            children.run("killed", [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
        with pytest.raises(Preempted, match="saver was stopped and has saved"):
            children.run("saver", [sys.executable, "-c", "raise SystemExit(3)"])
        with pytest.raises(RlkdError, match="/no/such cannot be|nothing cannot be started"):
            children.start("nothing", ["/no/such"])


def test_a_service_that_ends_while_others_need_it_ends_them(tmp_path):
    with Children() as children:
        children.start(
            "service", [sys.executable, "-c", "raise SystemExit('out of memory')"], log_file=tmp_path / "log"
        )
        with pytest.raises(RlkdError, match=r"(?s)service ended with code 1 while it was needed.*out of memory"):
            children.run("user", [sys.executable, "-c", "import time; time.sleep(60)"])


def test_being_asked_to_stop(tmp_path):
    asked = []
    with pytest.raises(Preempted), Children(lambda: bool(asked)) as children:
        process = children.start("service", [sys.executable, "-c", "import time; time.sleep(60)"])
        asked.append(1)
        children.run("user", [sys.executable, "-c", "import time; time.sleep(60)"])
    assert not alive(process.pid) and os.getpid()
