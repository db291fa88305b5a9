"""mean@k of a checkpoint (model.restore_from_path) on held-out test problems; writes evaluation.json to exp_dir.

Told to stop it keeps what it has evaluated and ends with code 3; the same command goes on from there.
"""

from rlkd_nemo.config.load import cli


def main(cfg):
    """Runs on every rank."""
    from rlkd_nemo.build import build_ranks
    from rlkd_nemo.evaluation_job import run

    run(cfg, build_ranks(cfg))


if __name__ == "__main__":
    cli(main, default="rlkd_demo", ranks=lambda cfg: cfg.trainer.devices, description=__doc__)
