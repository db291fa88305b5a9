"""Measures the decomposer and the judge of gsrm.* on labelled rows: parse rate, steps found, verdicts that agree.

    python examples/evaluate_gsrm.py gsrm=vllm gsrm.judge=normalised gsrm.evaluation.data=rows.jsonl

A GSRM is measured on rows that it was not trained on: gsrm.evaluation.held_out, as gsrm.training.held_out of its training.
Found steps are compared with labelled ones by gsrm.judge. Figures go to gsrm_evaluation.json in exp_manager.exp_dir and,
as a table, to stdout. Replies and rows that failed are counted by name and never scored.
"""

import sys

from rlkd_nemo.config.load import cli


def main(cfg):
    """One process."""
    from rlkd_nemo.gsrm.service.evaluate import run

    sys.stdout.write(run(cfg))


if __name__ == "__main__":
    cli(main, default="gsrm_data", description=__doc__)
