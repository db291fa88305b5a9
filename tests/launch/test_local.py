"""Ranks on one machine: what they get, how their end becomes one exit code, and that none is left behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlkd_nemo.launch import local
from rlkd_nemo.launch.local import Ended, verdict

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("rank_script.py")
START = (
    "import sys; from rlkd_nemo.launch.local import run_ranks;"
    "sys.exit(run_ranks(sys.argv[1], sys.argv[2:], 2, grace_s=1))"
)
pytestmark = pytest.mark.ranks


def start(how, folder, *args):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("OMP_NUM_THREADS", None)
    return subprocess.Popen(
        [sys.executable, "-c", START, str(SCRIPT), how, str(folder), *args],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(condition, seconds=100.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # it ended before, or between opening and reading
        return False
    return state != "Z"


def children_of(pid):
    """Living children; not /proc/.../children, which some kernels do not have."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has gone meanwhile
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            found += [path.parent.name] if state != "Z" and int(parent) == pid else []
    return found


def none_left(folder):
    pids = [int(path.read_text()) for path in folder.glob("pid-*")]
    assert pids
    wait_for(lambda: not any(alive(pid) for pid in pids), 20.0)


def end(process, folder):
    out, err = process.communicate(timeout=150)
    none_left(folder)
    return process.returncode, out, err


def test_ranks_get_what_torchrun_would_give(tmp_path):
    code, out, err = end(start("environment", tmp_path, "a b"), tmp_path)
    assert code == 0, err
    assert sorted(out.splitlines()) == [f"{r} {r} 2 2 127.0.0.1 1 True ['a b']" for r in range(2)]


def test_an_error_that_all_ranks_share_is_told_once_with_its_code(tmp_path):
    code, _, err = end(start("bad_input", tmp_path), tmp_path)
    assert code == 2
    assert err.count("no checkpoint there") == 1 and "Traceback" not in err


def test_the_cause_is_told_first_and_the_others_do_not_wait_for_ever(tmp_path):
    code, _, err = end(start("one_raises", tmp_path), tmp_path)
    assert code == 1
    assert err.startswith("rank 1: Traceback") and "RuntimeError: boom" in err
    assert "rank 0 still waited for the others and was ended" in err
    stacks = err.partition("stacks of rank 0 when it was ended:")[2]
    assert "rank_script.py" in stacks and "in <module>" in stacks  # to the outermost frame


def test_a_rank_that_is_killed_is_named(tmp_path):
    code, _, err = end(start("one_is_killed", tmp_path), tmp_path)
    assert code == 1
    assert "rank 1 was killed by SIGKILL without a word" in err


def test_a_hanging_phase_is_named_with_stacks(tmp_path):
    code, _, err = end(start("hangs", tmp_path), tmp_path)
    assert code == 1
    assert "rank 1: the barrier after saving took longer than 0.3 s" in err
    assert "rank_script.py" in err and "in main" in err  # the stacks


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_lets_every_rank_save_and_gives_3(tmp_path, number):
    process = start("waits", tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("pid-*"))) == 2)
    process.send_signal(number)
    code, _, err = end(process, tmp_path)
    assert code == 3, err
    assert len(list(tmp_path.glob("saved-*"))) == 2
    assert err.count("stopped after step 3 of 30, saved") == 1


def test_a_signal_before_the_ranks_are_ready_is_not_lost(tmp_path):
    process = start("waits", tmp_path)
    wait_for(lambda: len(children_of(process.pid)) == 2)  # started, still importing
    process.send_signal(signal.SIGTERM)
    code, _, err = end(process, tmp_path)
    assert code == 3, err


def test_a_second_interrupt_ends_deaf_ranks(tmp_path):
    process = start("deaf", tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("pid-*"))) == 2)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith("SIGINT: ")  # heard: two at once would be one
    process.send_signal(signal.SIGINT)
    code, _, err = end(process, tmp_path)
    assert code == 1
    assert "second interrupt" in err


def test_a_killed_launcher_leaves_no_rank(tmp_path):
    process = start("waits", tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("pid-*"))) == 2)
    process.kill()
    process.wait()
    none_left(tmp_path)  # at once: not when their work is done and their pipes close
    process.communicate()


def test_children_of_a_rank_end_with_it(tmp_path):
    code, _, err = end(start("child", tmp_path), tmp_path)
    assert code == 0, err
    assert len(list(tmp_path.glob("pid-child-*"))) == 2  # and end() saw them gone


def ended(rank, code, *, time=1.0, killed=False, message="m", deliberate=True):
    return Ended(rank, code, killed, message, deliberate, time)


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ([ended(0, 0), ended(1, 0)], 0),
        ([ended(0, 3), ended(1, 3)], 3),
        ([ended(0, 1, time=2.0), ended(1, 2, time=1.0)], 2),  # the first in time is the cause
        ([ended(0, 2, time=1.0), ended(1, -9, time=0.0)], 1),  # one that died without a word before all
        ([ended(0, -9, killed=True, time=0.0), ended(1, 2, time=1.0)], 2),  # we killed it: no cause
        ([ended(0, -9, killed=True), ended(1, -9, killed=True)], 1),
    ],
)
def test_one_code_for_all(ends, code):
    assert verdict(ends) == code


def test_the_ranks_port_is_none_that_the_system_gives_to_others_meanwhile(monkeypatch):
    handed_out = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if handed_out.exists():  # a container may hide it
        assert local._first_handed_out() == int(handed_out.read_text().split()[0])
    monkeypatch.setattr(local, "_first_handed_out", lambda: 30000)  # whatever this system's is
    ports = {local._free_port() for _ in range(20)}
    assert len(ports) > 10 and all(20000 <= port < 30000 for port in ports)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(local, "_FIRST_PORT", taken.getsockname()[1])
        monkeypatch.setattr(local, "_first_handed_out", lambda: local._FIRST_PORT + 1)
        assert local._free_port() != local._FIRST_PORT  # the only one of the range is taken
    monkeypatch.setattr(local, "_first_handed_out", lambda: 1024)  # a system that hands out everything
    assert local._free_port() >= 1024


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a port is free, not held")
def test_the_ranks_port_is_kept_from_other_launchers_until_they_take_it(monkeypatch):
    first = local._hold_port()
    monkeypatch.setattr(local, "_FIRST_PORT", first.number)
    monkeypatch.setattr(local, "_first_handed_out", lambda: first.number + 1)
    try:
        assert local._free_port() != first.number
        with socket.create_server(("", first.number)) as store:  # shares the address, as torch's store does
            socket.create_connection(("127.0.0.1", first.number), timeout=60).close()
            assert store.getsockname()[1] == first.number and local._free_port() != first.number
    finally:
        first.by.close()


def test_stacks_that_come_with_pauses_are_waited_for(tmp_path, monkeypatch):
    clock, stacks = [0.0], tmp_path / "0.stacks"

    def sleep(seconds):
        clock[0] += seconds
        stacks.write_text("word " * min(4, int(clock[0] / 0.4)))  # 1.6 s, with pauses

    monkeypatch.setattr(local, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    group = local._Group("script", [], 1, tmp_path, 1)
    group.processes = [SimpleNamespace(poll=lambda: None, send_signal=lambda number: None)]
    (tmp_path / "0.ready").touch()
    stacks.touch()
    group._ask_for_stacks()
    assert stacks.read_text() == "word " * 4 and clock[0] < local._STACKS_S
