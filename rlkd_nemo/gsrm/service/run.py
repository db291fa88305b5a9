"""Config to a running server: what examples/serve_gsrm.py does."""

from __future__ import annotations

from pathlib import Path

import uvloop

from rlkd_nemo import tasks
from rlkd_nemo.config.schema import Config
from rlkd_nemo.gsrm.service.app import GsrmApp
from rlkd_nemo.gsrm.service.build import rules
from rlkd_nemo.gsrm.service.core import ScoringCore
from rlkd_nemo.gsrm.service.registry import ReferenceRegistry
from rlkd_nemo.gsrm.service.scoring import Scoring
from rlkd_nemo.gsrm.service.serve import configure_logs, serve, token


def core(cfg: Config) -> ScoringCore:
    """What the server scores with, models or rules. Raises: ConfigError and InputError for settings that cannot be used."""
    return Scoring(cfg.gsrm, store_directory(cfg), tasks.notation(cfg.task))


def store_directory(cfg: Config) -> Path:
    """Where decomposed references are kept."""
    return Path(cfg.gsrm.reference_store or Path(cfg.exp_manager.exp_dir) / "references")


def run_server(cfg: Config) -> None:
    """Serve until SIGTERM or SIGINT, with JSON lines on stderr.

    Raises: ConfigError when the address cannot be had or wants a token; ServiceError when a backend cannot be reached,
    or when requests had to be given up at the end.
    """
    settings = cfg.gsrm.server
    secret = token(settings, cfg.gsrm.token_env)
    scoring = core(cfg)
    configure_logs(settings.log_level)
    registry = ReferenceRegistry(store_directory(cfg))

    async def run() -> None:
        # Inside the loop: semaphores and tasks belong to it.
        await serve(GsrmApp(scoring, settings, registry, token=secret, rules=rules(cfg.gsrm)))

    uvloop.run(run())
