"""Serves structure rewards over HTTP: gsrm=vllm or gsrm=openai for language models, without either by rules.

POST /score and /references; GET /health, /ready and /metrics. Ends on SIGTERM or Ctrl-C, after finishing what it took on.
"""

from rlkd_nemo.config.load import cli


def main(cfg):
    """One process; more of them share the work behind gsrm.service.urls."""
    from rlkd_nemo.gsrm.service.run import run_server

    run_server(cfg)


if __name__ == "__main__":
    cli(main, default="rlkd_demo", description=__doc__)
