"""A rank that stops, loops or waits for what never comes: the job ends soon, says who and where, and leaves nothing."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from rlkd_nemo.lifecycle import heartbeat
from rlkd_nemo.lifecycle.heartbeat import Heartbeat

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("heartbeat_ranks.py")
START = "import sys; from rlkd_nemo.launch.local import run_ranks; sys.exit(run_ranks(sys.argv[1], sys.argv[2:], 2, grace_s=6))"
pytestmark = pytest.mark.ranks


def run(how, folder):
    # What nobody notices waits for ten minutes and more: this time is not up before that.
    done = subprocess.run(
        [sys.executable, "-c", START, str(SCRIPT), how, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    pids = [int(path.read_text()) for path in folder.glob("pid-*")]
    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids), "a rank was left behind"
    return done


# Rank 0 holds the store that beats go through: without it the others see a store that does not answer.
@pytest.mark.parametrize("who", [0, 1])
def test_a_stopped_rank_is_named_by_its_peer(tmp_path, who):
    done = run(f"stopped{who}", tmp_path)
    assert done.returncode == 1
    if who == 1:
        assert "rank 1 (process" in done.stderr and "no sign of life" in done.stderr
        assert "last in update of step 3: micro-batch 2 of 4" in done.stderr
    else:
        assert "rank 0, which holds the store of the ranks, has not answered" in done.stderr
    assert f"rank {1 - who}: " in done.stderr
    assert "all_reduce" in done.stderr  # the stack of the one that waited
    assert "both ranks are there" in done.stderr.partition("its last log lines:")[2]


def test_a_killed_rank_is_named_with_its_last_words(tmp_path):
    done = run("killed", tmp_path)
    assert done.returncode == 1
    told = "rank 1 was killed by SIGKILL without a word, in update of step 3: micro-batch 2 of 4; its last log lines:"
    assert told in done.stderr
    assert "both ranks are there" in done.stderr.partition(told)[2]
    assert "rank 0 failed after that: Traceback" in done.stderr and "all_reduce" in done.stderr


@pytest.mark.parametrize(("how", "frame"), [("loop", "in endless_loop"), ("elsewhere", "in recv")])
def test_a_job_without_progress_shows_where_every_rank_is(tmp_path, how, frame):
    done = run(how, tmp_path)
    assert done.returncode == 1
    assert "without a sign of progress" in done.stderr
    assert frame in done.stderr and "in all_reduce" in done.stderr  # both stacks
    where = "save of step 3" if how == "elsewhere" else "update of step 3: micro-batch 2 of 4"
    assert where in done.stderr.partition("Where the ranks are: ")[2].partition(".")[0]


def test_a_rank_that_is_slow_to_show_its_stacks_is_not_cut_off_by_the_end_of_another(tmp_path):
    done = run("slow to speak", tmp_path)
    assert done.returncode == 1
    assert "in all_reduce" in done.stderr and "in recv" in done.stderr
    assert "rank 1: ends with the others: rank 0: update of step 3 took longer" in done.stderr


def test_waiting_for_a_rank_that_gets_on_is_no_hang(tmp_path):
    done = run("slow", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("DONE") == 2


def test_a_job_that_was_suspended_as_a_whole_goes_on(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", START, str(SCRIPT), "suspended", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while len(list(tmp_path.glob("ready-*"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    pids = [int(path.read_text()) for path in tmp_path.glob("pid-*")]
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in pids:
            os.kill(pid, number)
        time.sleep(9 if number == signal.SIGSTOP else 0)
    (tmp_path / "resumed").touch()
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.count("DONE") == 2


@pytest.fixture
def at(monkeypatch):
    """`at[0]`: seconds on the heartbeat's clock. What it ends the process with is raised instead."""
    clock = [1000.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: clock[0])

    def end(message, **_):
        raise AssertionError(message)

    monkeypatch.setattr(heartbeat.watchdog, "end", end)
    return clock


class Suspended:
    """A store in whose answers the whole job sleeps, if it is told to."""

    def __init__(self, clock):
        self.store, self.clock, self.sleep_s = dist.HashStore(), clock, 0.0

    def set(self, key, value):
        self.store.set(key, value)

    def check(self, keys):
        return self.store.check(keys)

    def get(self, key):
        self.clock[0] += self.sleep_s
        self.sleep_s = 0.0
        return self.store.get(key)


def beat(*ranks):
    for one in ranks:
        one._beat(one._forgive_sleep("_run"))


def test_a_job_that_is_suspended_while_a_rank_asks_for_its_neighbour_goes_on(at):
    store = Suspended(at)
    first, second = (Heartbeat(store, rank, 2, silence_s=10, period_s=2) for rank in (0, 1))
    beat(first, second)
    for _ in range(2):
        at[0] += 2
        beat(first, second)
    at[0] += 2
    store.sleep_s = 60
    beat(first)  # the neighbour's beat is that of before the sleep
    beat(second)
    assert first.silence() <= 10
    at[0] += 2
    beat(first, second)
    with pytest.raises(AssertionError, match="rank 1 .* has given no sign of life for 1[0-9] s"):
        for _ in range(8):  # and now it is gone
            at[0] += 2
            beat(first)


def test_a_deadline_that_wakes_before_the_heartbeat_blames_nobody(at):
    first = Heartbeat(dist.HashStore(), 0, 2, silence_s=10, period_s=2)
    for thread in ("_run", "_watch_store"):
        first._forgive_sleep(thread)
    at[0] += 6
    assert first.silence() == 6
    at[0] += 600  # suspended
    assert first.silence() == 0
    at[0] += 1
    first._forgive_sleep("_run")
    assert first.silence() == 0
    at[0] += 3
    assert first.silence() == 3


def test_the_rank_with_the_store_leaves_as_soon_as_the_others_have():
    # Beats so rare that waiting for the next one would be seen, however busy the machine is.
    store = dist.HashStore()
    first, second = (Heartbeat(store, rank, 2, silence_s=5000, period_s=1000) for rank in (0, 1))
    first.start()
    second.start()
    leaving = threading.Thread(target=first.stop)
    leaving.start()
    while not (first._read("0") or {}).get("done"):
        time.sleep(0.01)
    assert leaving.is_alive()  # the store goes with it
    second.stop()
    leaving.join(50)
    assert not leaving.is_alive()


def test_what_an_earlier_attempt_said_does_not_end_this_one(monkeypatch):
    # torchrun keeps its store when it starts the ranks again, and counts the attempts.
    store = dist.HashStore()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    Heartbeat(store, 0, 2, silence_s=1).tell("the first attempt is over")
    assert Heartbeat(store, 1, 2, silence_s=1)._read("verdict") == {"message": "the first attempt is over"}
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert Heartbeat(store, 1, 2, silence_s=1)._read("verdict") is None
