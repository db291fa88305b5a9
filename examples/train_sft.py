"""Supervised training on a task's demonstrations: warm starts, teachers. Resumes what it finds in exp_dir."""

from rlkd_nemo.config.load import cli


def main(cfg):
    """Runs on every rank."""
    from pathlib import Path

    from rlkd_nemo.build import build_ranks
    from rlkd_nemo.jobs import train_sft

    train_sft(cfg, build_ranks(cfg), Path(cfg.exp_manager.exp_dir), description=cfg.name)


if __name__ == "__main__":
    cli(main, default="sft_demo", ranks=lambda cfg: cfg.trainer.devices, description=__doc__, supervised=True)
