"""Labels training data for a GSRM: any OpenAI-compatible model takes the teacher paths of a prompt file apart and,
with gsrm.label.verdicts=both (or per_pair, per_response), compares their steps.

    python examples/label_gsrm_data.py task=prompts task.path=problems.jsonl gsrm.llm.decomposer.model=gpt-4o

Lines may name a domain ("domain": "code"). Rows go to gsrm_data.jsonl in exp_dir, replies that cannot be read to
gsrm_data_rejects.jsonl with the reason; the same command goes on where it stopped. gsrm.label.per_s limits the calls.
"""

from rlkd_nemo.config.load import cli


def main(cfg):
    """One process a file; Ctrl-C finishes what is in flight and keeps it."""
    from rlkd_nemo.gsrm.service.label import run

    run(cfg)


if __name__ == "__main__":
    cli(main, default="gsrm_data", description=__doc__)
