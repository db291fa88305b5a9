"""mean@k of a checkpoint (model.restore_from_path) on held-out test problems; writes evaluation.json to exp_dir."""

from rlkd_nemo.config.load import cli


def main(cfg):
    """Runs on every rank."""
    from pathlib import Path

    from rlkd_nemo.build import build_ranks
    from rlkd_nemo.errors import ConfigError
    from rlkd_nemo.jobs import evaluate_checkpoint
    from rlkd_nemo.report.files import dumps, write_atomically

    if not cfg.model.restore_from_path:
        raise ConfigError(
            "model.restore_from_path is not set; name the checkpoint to evaluate, .../checkpoints/step-000030"
        )
    ranks = build_ranks(cfg)
    directory = Path(cfg.exp_manager.exp_dir)
    result = evaluate_checkpoint(cfg, ranks, Path(cfg.model.restore_from_path), directory)
    if ranks.is_main:
        numbers = {name.removeprefix("validation/"): value for name, value in result.metrics().items()}
        text = dumps({"checkpoint": cfg.model.restore_from_path, **numbers}, indent=2)
        write_atomically(directory / "evaluation.json", text + "\n")


if __name__ == "__main__":
    cli(main, default="rlkd_demo", ranks=lambda cfg: cfg.trainer.devices, description=__doc__)
