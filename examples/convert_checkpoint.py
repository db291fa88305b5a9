"""A Hugging Face directory to a checkpoint, or a checkpoint to a Hugging Face directory: convert.source, convert.target.

The vocabulary is model.tokenizer's: model.tokenizer.library=huggingface model.tokenizer.type=<its directory>.
"""

from rlkd_nemo.config.load import cli


def main(cfg):
    """Runs on every rank."""
    from rlkd_nemo.build import build_ranks
    from rlkd_nemo.jobs import convert

    convert(cfg, build_ranks(cfg))


if __name__ == "__main__":
    cli(main, default="convert", ranks=lambda cfg: cfg.trainer.devices, description=__doc__)
