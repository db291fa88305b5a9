"""Rank script: an evaluation that one rank is asked to stop, and goes on, against one that was left alone.

Usage: evaluate_ranks.py DIRECTORY CHECKPOINT OTHER. Prints one line a finding, from rank 0.
"""

import os
import sys
from pathlib import Path

from rlkd_nemo.engine.ranks import close_ranks

from rlkd_nemo import build
from rlkd_nemo.config.load import load
from rlkd_nemo.errors import ConfigError, Preempted
from rlkd_nemo.evaluation_job import KEPT, RESULT, run
from rlkd_nemo.lifecycle import signals
from rlkd_nemo.training import evaluate_in_parts as parts
from tests.integration.conftest import SMALL


def evaluate(directory, checkpoint):
    overrides = [
        *SMALL, f"model.restore_from_path={checkpoint}", f"exp_manager.exp_dir={directory}", "demo.test_problems=9",
        "demo.test_samples=2", "rollout.batch_size=4", "model.tensor_model_parallel_size=1", "trainer.devices=2",
    ]  # fmt: skip
    cfg = load("rlkd_demo", overrides)
    run(cfg, build.build_ranks(cfg))


def main(directory, checkpoint, other):
    is_main = os.environ["RANK"] == "0"
    say = print if is_main else lambda *_: None
    evaluate(directory / "whole", checkpoint)
    plain, taken = parts.take, []

    def take(engine, scorer, problems, **how):
        taken.append(len(problems))
        if len(taken) == 2 and not is_main:
            signals.note()  # one of two ranks, while the second part is under way
        return plain(engine, scorer, problems, **how)

    parts.take = take
    stopped = directory / "stopped"
    try:
        evaluate(stopped, checkpoint)
        say("was not stopped")
    except Preempted as err:
        say(f"stopped: {'8 of 9 problems evaluated' in str(err)} {taken} {(stopped / RESULT).exists()}")
    signals.clear()
    try:
        evaluate(stopped, other)
        say("another checkpoint was mixed in")
    except ConfigError as err:
        say(f"refused: {'model.restore_from_path' in str(err) and 'weights' in str(err)}")
    evaluate(stopped, checkpoint)
    say(f"went on: {taken}")
    if is_main:
        print(f"equal: {(stopped / RESULT).read_text() == (directory / 'whole' / RESULT).read_text()}")
        print(f"left behind: {[str(p) for p in directory.rglob(KEPT)]}")
    close_ranks()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
