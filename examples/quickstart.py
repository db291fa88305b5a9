"""Make a teacher and a student on two CPU ranks, distil one into the other with RLKD and TRRD, and report.

Try one override: objective=grpo (kdrl, opd), model.pipeline_model_parallel_size=2
model.tensor_model_parallel_size=1, model.seed=1.
"""

from rlkd_nemo.config.load import cli


def main(cfg):
    """Runs on every rank."""
    from rlkd_nemo.quickstart import run

    run(cfg)


if __name__ == "__main__":
    cli(main, default="quickstart", ranks=lambda cfg: cfg.trainer.devices, description=__doc__)
