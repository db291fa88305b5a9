"""Rank script: jobs that break off at a given point and are started again, against one that was left alone.

Usage: resume_ranks.py DIRECTORY START TEACHER (checkpoints). Prints `<layout> <point>: <verdict>` for each.

Breaking off is an exception that nothing here catches: on disk it leaves what a kill at that point leaves (real kills:
tests/integration/test_train.py, tests/engine/state/killed_save_ranks.py), and ten jobs fit into one start of ranks.
"""

import sys
from pathlib import Path

from rlkd_nemo.engine.ranks import close_ranks

import torch.distributed as dist

from rlkd_nemo import build
from rlkd_nemo.config.load import load
from rlkd_nemo.engine.state import storage
from rlkd_nemo.jobs import train_rl
from rlkd_nemo.training.fit import RLKDTrainer
from tests.integration.conftest import SMALL, read_metrics

LAYOUTS = {"pipeline": (1, 2, ["save", "between", "validation"]), "data": (1, 1, ["save"])}
# Where it breaks off (owner, name), and at which call: all after the save of step 2 and before that of step 4 is whole.
POINTS = {
    "save": (storage.checkpoint, "save", 2),
    "between": (RLKDTrainer, "teach", 3),
    "validation": (RLKDTrainer, "validate", 3),
}


class BrokenOff(BaseException):
    """Not an Exception: no handler of the package may clean up after it."""


def breaks_off(point):
    owner, name, at = POINTS[point]
    plain, calls = getattr(owner, name), []

    def hook(*args, **kwargs):
        calls.append(name)
        if len(calls) == at:
            setattr(owner, name, plain)
            raise BrokenOff
        return plain(*args, **kwargs)

    setattr(owner, name, hook)


def run(directory, layout, start, teacher):
    """A job of four steps in `directory`, or the rest of it: its metrics."""
    tensor, pipeline, _ = LAYOUTS[layout]
    cfg = load(
        "rlkd_demo",
        [
            *SMALL, f"model.restore_from_path={start}", f"teacher.restore_from_path={teacher}", "rlkd.num_prompts=2",
            f"exp_manager.exp_dir={directory}", "trainer.rlkd.max_steps=4", "trainer.rlkd.save_interval=2",
            "rlkd.updates_per_batch=2", "validation.num_problems=2", f"model.tensor_model_parallel_size={tensor}",
            f"model.pipeline_model_parallel_size={pipeline}", "trainer.devices=2",
        ],
    )  # fmt: skip
    train_rl(cfg, build.build_ranks(cfg))
    return read_metrics(directory)


def main(directory, start, teacher):
    for layout, (_, _, points) in LAYOUTS.items():
        wanted = run(directory / f"{layout}-whole", layout, start, teacher)
        for point in points:
            job = directory / f"{layout}-{point}"
            breaks_off(point)
            try:
                run(job, layout, start, teacher)
                verdict = "did not break off"
            except BrokenOff:
                left = sorted(path.name for path in (job / "checkpoints").iterdir())
                dist.barrier()  # both have looked before either goes on
                got = run(job, layout, start, teacher)
                verdict = f"{left} {'equal' if got == wanted and len(got) == 5 else 'different'}"
            if dist.get_rank() == 0:
                print(f"{layout} {point}: {verdict}", flush=True)
    close_ranks()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
