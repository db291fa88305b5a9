"""Train a tiny GSRM, serve it by a real vLLM, and let it reward a student that reasons in free text.

Needs a Python with vLLM in gsrm_demo.vllm_python or RLKD_VLLM_PYTHON: make demo-gsrm makes one. Everything that it
starts ends with it; an interrupted demo goes on where it was.
"""

from pathlib import Path

from rlkd_nemo.config.load import cli


def main(cfg):
    """One process, which starts the others."""
    from rlkd_nemo.demo_gsrm import run

    run(cfg, Path(__file__).resolve().parent)


if __name__ == "__main__":
    cli(main, default="demo_gsrm", description=__doc__)
