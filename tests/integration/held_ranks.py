"""Rank script: examples/train_rlkd.py whose ranks wait at a given point of step 4 until a signal has come, or for ever.

Takes the example's arguments; the environment variable RLKD_TEST_HOLDS names the point. `step`: in the middle of step
4, until a signal to stop has come. `save`: the writing of the checkpoint of step 4, for ever.

A test that signals a run on its way races with it: on a busy machine the run is over before the signal is sent.
"""

import os
import time

from rlkd_nemo.config.load import cli
from tests.ranks import PATIENCE_S

HELD = 4


def hold(point):
    """Patch the point that is to wait; on ranks only, after what brings torch along."""
    from rlkd_nemo.engine.state import storage
    from rlkd_nemo.lifecycle.signals import stop_requested
    from rlkd_nemo.lifecycle.watchdog import mark
    from rlkd_nemo.training.fit import RLKDTrainer

    def wait(until):
        end = time.monotonic() + PATIENCE_S
        while not until():
            assert time.monotonic() < end, "nobody came"
            mark("held by the test")
            time.sleep(0.01)

    teach, write, writes = RLKDTrainer.teach, storage.checkpoint.save, []

    def held_teach(self, experience):
        if self.state.step + 1 == HELD:
            wait(stop_requested)
        teach(self, experience)

    def held_write(*args, **kwargs):
        writes.append(args)
        if len(writes) == 2:  # the first was that of step 2
            wait(lambda: False)
        return write(*args, **kwargs)

    if point == "step":
        RLKDTrainer.teach = held_teach
    else:
        storage.checkpoint.save = held_write


def main(cfg):
    """Runs on every rank."""
    from rlkd_nemo.build import build_ranks
    from rlkd_nemo.jobs import train_rl

    ranks = build_ranks(cfg)
    hold(os.environ["RLKD_TEST_HOLDS"])
    train_rl(cfg, ranks)


if __name__ == "__main__":
    cli(main, default="rlkd_demo", ranks=lambda cfg: cfg.trainer.devices)
