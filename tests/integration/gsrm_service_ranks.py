"""Rank script: the same run with embedded structure rewards, with a service, and with one that fails.

Usage: gsrm_service_ranks.py DIRECTORY START URL FAILING_URL. Prints one line a part.
"""

import sys
from pathlib import Path

from rlkd_nemo.engine.ranks import close_ranks

from rlkd_nemo import build, jobs
from rlkd_nemo.config.load import load
from rlkd_nemo.errors import FailureBudgetError, ServiceError
from tests.integration.conftest import SMALL


def run(name, directory, start, ranks, *overrides):
    cfg = load(
        "rlkd_demo",
        [
            *SMALL, "objective=grpo", f"model.restore_from_path={start}", f"exp_manager.exp_dir={directory / name}",
            "trainer.rlkd.max_steps=3", "trainer.rlkd.save_interval=100", "trainer.rlkd.val_check_interval=0",
            "rollout.batch_size=4", "rlkd.updates_per_batch=1", *overrides,
        ],
    )  # fmt: skip
    try:
        jobs.train_rl(cfg, ranks)
        said = "finished"
    except (FailureBudgetError, ServiceError) as error:
        said = f"{type(error).__name__}: {error}"
    if ranks.is_main:
        print(f"{name}: {said}", flush=True)


def main(directory, start, url, failing_url):
    ranks = build.build_ranks(load("rlkd_demo", [*SMALL]))
    run("embedded", directory, start, ranks)
    run("service", directory, start, ranks, "gsrm.scorer=service", f"gsrm.service.urls=[{url}]")
    run(
        "failing", directory, start, ranks, "gsrm.scorer=service", f"gsrm.service.urls=[{failing_url}]",
        "gsrm.service.pause_s=1.5", "gsrm.service.backoff_s=0.05",
    )  # fmt: skip
    run(
        "dead", directory, start, ranks, "gsrm.scorer=service", "gsrm.service.urls=[http://127.0.0.1:9]",
        "gsrm.service.startup_s=0.5",
    )  # fmt: skip
    close_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
