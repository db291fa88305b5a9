"""Supervised training of a GSRM on labelled rows (gsrm.training.data), and its export in Hugging Face's format.

Loss on the reply only; resumes what it finds in exp_dir. conf/gsrm_7b.yaml is the published recipe.
"""

from rlkd_nemo.config.load import cli


def main(cfg):
    """Runs on every rank."""
    from rlkd_nemo.build import build_ranks
    from rlkd_nemo.jobs import train_gsrm

    train_gsrm(cfg, build_ranks(cfg))


if __name__ == "__main__":
    cli(main, default="gsrm_7b", ranks=lambda cfg: cfg.trainer.devices, description=__doc__, supervised=True)
