"""Decomposes the references of a task or a prompt file into gsrm.reference_store, once ever; goes on where it stopped.

With the run's own config and gsrm choice: the store's entries carry model, prompt and text. References without a step go
to rejected_references.jsonl in exp_manager.exp_dir.
"""

from rlkd_nemo.config.load import cli


def main(cfg):
    """One process; several may fill one store."""
    from rlkd_nemo.gsrm.service.prefill import run

    run(cfg)


if __name__ == "__main__":
    cli(main, default="rlkd_demo", description=__doc__)
