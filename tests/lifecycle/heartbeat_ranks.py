"""Rank script: two ranks in a phase of a job; one of them goes wrong. Usage: heartbeat_ranks.py HOW FOLDER"""

import os
import signal
import sys
import time
from pathlib import Path

from rlkd_nemo.engine.ranks import close_ranks, init_ranks

import torch
import torch.distributed as dist

from rlkd_nemo import log
from rlkd_nemo.launch import rank
from rlkd_nemo.lifecycle import heartbeat, watchdog
from rlkd_nemo.lifecycle.watchdog import deadline, mark


def endless_loop():
    while True:
        pass


def wait_until_told(me):
    """Until the others know where this rank is."""
    while "micro-batch 2 of 4" not in heartbeat._running._job.get("where", {me: ""})[me]:
        time.sleep(0.05)


def main(arguments):
    how, folder = arguments[0], Path(arguments[1])
    (folder / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
    # Only what is stopped has to be missed soon: elsewhere a busy machine may keep a rank silent for longer.
    heartbeat.PERIOD_S = 0.6
    ranks = init_ranks(1, 1, timeout_s=600, heartbeat_s=6 if how.startswith(("stopped", "suspended")) else 20)
    me = ranks.world_rank
    log.configure("test", me, "DEBUG")
    log.logging.getLogger("rlkd_nemo.test").info("both ranks are there")
    dist.all_reduce(torch.ones(1))
    if how == "suspended":  # the whole job, for longer than a rank may be silent
        (folder / f"ready-{me}").write_text("")
        with deadline(60, "update of step 3"):
            while not (folder / "resumed").exists():
                time.sleep(0.1)
            time.sleep(4)  # time enough to be blamed
            dist.all_reduce(torch.ones(1))
        print("DONE", flush=True)
        close_ranks()
        return
    if how == "slow":  # rank 1 works for longer than the deadline, but gets on
        with deadline(6, "rollout of step 2"):  # a mark takes two beats, 1.2 s, to be heard of
            for token in range(16 if me == 1 else 0):
                time.sleep(0.5)
                mark(f"token {token}")
            dist.all_reduce(torch.ones(1))
        print("DONE", flush=True)
        close_ranks()
        return
    if how == "slow to speak" and me == 0:
        stacks = watchdog._stacks
        watchdog._stacks = lambda: time.sleep(2) or stacks()
    patient = how.startswith(("stopped", "killed")) or (how, me) == ("slow to speak", 1)
    with deadline(200 if patient else 4, "update of step 3"):
        mark("micro-batch 2 of 4")
        if how.startswith("stopped") and me == int(how[-1]):
            wait_until_told(me)
            os.kill(os.getpid(), signal.SIGSTOP)
        if how == "killed" and me == 1:
            wait_until_told(me)
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "loop" and me == 1:
            endless_loop()
        if how == "slow to speak" and me == 1:
            dist.recv(torch.ones(1), src=0)
        if how == "elsewhere" and me == 1:
            with deadline(4, "save of step 3"):
                dist.recv(torch.ones(1), src=0)  # rank 0 is in another collective and never sends
        dist.all_reduce(torch.ones(1))


if __name__ == "__main__":
    rank.enter()
    rank.leave(rank.run(main, sys.argv[1:]))
