"""GSRM rewards over PyTriton, for NeMo-Aligner's reward client, ours or its own. Ends on SIGTERM or Ctrl-C."""

from rlkd_nemo.aligner.compat import SERVING, begin, exiting

if __name__ == "__main__":
    begin(__doc__, SERVING)

import logging

import hydra
from omegaconf import OmegaConf

from rlkd_nemo.aligner.serving import build_server
from rlkd_nemo.config.aligner_groups import register

register()


@hydra.main(config_path="../../conf/aligner", config_name="inference_gsrm", version_base="1.1")
@exiting
def main(cfg) -> None:
    """One process; no ranks."""
    logging.basicConfig(level=logging.INFO)
    build_server(OmegaConf.to_container(cfg, resolve=True)).run_server()


if __name__ == "__main__":
    main()
