"""One job a directory, with holders that end in every way."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from rlkd_nemo.errors import InputError
from rlkd_nemo.lifecycle.run_lock import RunLock

HOLD = (
    "import sys, time; from pathlib import Path; from rlkd_nemo.lifecycle.run_lock import RunLock;"
    "lock = RunLock(Path(sys.argv[1])); lock.acquire(); print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def holder_on(host, directory, **more):
    (directory / "run.lock").write_text(json.dumps({"host": host, "pid": 2**22 + 1, "since": "then", **more}))


def test_the_second_is_refused_and_told_who_holds_it(tmp_path, holder):
    with pytest.raises(InputError) as refusal:
        RunLock(tmp_path).acquire()
    message = str(refusal.value)
    assert f"process {holder.pid} on {socket.gethostname()}, since 2" in message and "exp_manager.exp_dir" in message


def test_a_killed_holder_holds_nothing(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run.lock").exists()
    RunLock(tmp_path).acquire()


def test_nothing_is_left_after_release(tmp_path):
    lock = RunLock(tmp_path / "new")
    lock.acquire()
    with pytest.raises(InputError):
        RunLock(tmp_path / "new").acquire()  # the same process is no exception
    lock.release()
    lock.release()
    assert list((tmp_path / "new").iterdir()) == []
    RunLock(tmp_path / "new").acquire()


def test_a_dead_holder_elsewhere_is_not_guessed_about(tmp_path):
    holder_on("node7", tmp_path)
    with pytest.raises(InputError, match=r"on node7.*remove .*run\.lock"):
        RunLock(tmp_path).acquire()
    (tmp_path / "run.lock").unlink()
    RunLock(tmp_path).acquire()


def test_a_requeued_slurm_job_takes_its_own_lock_back(tmp_path, monkeypatch):
    holder_on("node7", tmp_path, job="4711")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    RunLock(tmp_path).acquire()


def test_without_locks_a_living_holder_still_counts(tmp_path, monkeypatch):
    def none(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    holder_on(socket.gethostname(), tmp_path, pid=os.getppid())
    with pytest.raises(InputError, match="may be in use"):
        RunLock(tmp_path).acquire()
    holder_on(socket.gethostname(), tmp_path)  # no such process
    RunLock(tmp_path).acquire()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_directory_that_cannot_be_written(tmp_path, monkeypatch, number):
    def refuse(*args, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match=f"nothing can be written to .*{os.strerror(number)}.*exp_manager.exp_dir"):
        RunLock(tmp_path).acquire()


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="nothing can be written"):
        RunLock(tmp_path / "file" / "run").acquire()


def test_a_full_disk_is_one_error_and_leaves_no_half_record(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(InputError, match="No space left on device"):
        RunLock(tmp_path).acquire()
    assert not list(tmp_path.iterdir())
