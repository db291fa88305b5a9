"""Reinforcement-learning distillation: RLKD rewards with GRPO, KDRL, TRRD or OPD. Resumes what it finds in exp_dir."""

from rlkd_nemo.config.load import cli


def main(cfg):
    """Runs on every rank."""
    from rlkd_nemo.build import build_ranks
    from rlkd_nemo.jobs import train_rl

    train_rl(cfg, build_ranks(cfg))


if __name__ == "__main__":
    cli(main, default="rlkd_demo", ranks=lambda cfg: cfg.trainer.devices, description=__doc__)
