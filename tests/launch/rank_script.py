"""What the launcher's tests run on each rank: `rank_script.py HOW FOLDER`; FOLDER collects what ranks saw."""

import os
import subprocess
import sys
import time
from pathlib import Path

from rlkd_nemo.errors import CheckpointError, Preempted
from rlkd_nemo.launch import rank
from rlkd_nemo.lifecycle.signals import stop_requested
from rlkd_nemo.lifecycle.watchdog import deadline

ME = int(os.environ["RANK"])


def note(path, pid):
    """Whole or not there: a test may kill this rank as soon as it sees the file."""
    path.with_name(f"partial-{path.name}").write_text(str(pid))
    path.with_name(f"partial-{path.name}").rename(path)


def main(arguments):
    how, folder = arguments[0], Path(arguments[1])
    note(folder / f"pid-{ME}", os.getpid())
    if how == "environment":
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS")
        seen = [*(os.environ[name] for name in names), int(os.environ["MASTER_PORT"]) > 0, arguments[2:]]
        # One write: print with several arguments makes several where output is not buffered, and two ranks share it.
        os.write(1, (" ".join(map(str, seen)) + "\n").encode())
    if how == "bad_input":  # every rank finds the same mistake
        raise CheckpointError("no checkpoint there")
    if how == "one_raises" and ME == 1:
        raise RuntimeError("boom")
    if how == "one_is_killed" and ME == 1:
        os.kill(os.getpid(), 9)
    if how == "hangs" and ME == 1:
        with deadline(0.3, "the barrier after saving"):
            time.sleep(60)
    if how == "child":
        note(folder / f"pid-child-{ME}", subprocess.Popen(["sleep", "60"]).pid)
        return
    if how in ("environment",):
        return
    for _ in range(1200):  # longer than any test waits for the end of something else
        time.sleep(0.05)
        if how != "deaf" and stop_requested():
            time.sleep(0.5)  # saving takes longer than the signal's way
            (folder / f"saved-{ME}").write_text("saved")
            raise Preempted("stopped after step 3 of 30, saved")


if __name__ == "__main__":
    rank.enter()
    rank.leave(rank.run(main, sys.argv[1:]))
