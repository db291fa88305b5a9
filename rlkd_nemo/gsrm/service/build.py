"""Config to the trainer's scorer. Needs of the service's libraries only the client's: trainers run without a web server."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from rlkd_nemo.config.schema import Config, Gsrm
from rlkd_nemo.gsrm.service.client import GsrmClient
from rlkd_nemo.gsrm.service.scorer import ServiceScorer
from rlkd_nemo.interfaces import Task

log = logging.getLogger(__name__)


def rules(gsrm: Gsrm) -> dict[str, str]:
    """The settings that a reward depends on and that trainer and server must share."""
    return {key: str(getattr(gsrm, key)) for key in ("reference_mode", "alignment", "norm")}


def scorer(cfg: Config, task: Task, stop_requested: Callable[[], bool] = lambda: False) -> ServiceScorer:
    """The trainer's scorer, once a server is ready.

    Raises: ServiceError when none is within `gsrm.service.startup_s`; ConfigError when it refuses the token or scores by
    other rules than the run's config.
    """
    client = GsrmClient(cfg.gsrm.service, os.environ.get(cfg.gsrm.token_env))
    try:
        version = client.check(rules(cfg.gsrm))
    except BaseException:
        client.close()
        raise
    log.info("structure rewards come from %s (%s)", ", ".join(cfg.gsrm.service.urls), version)
    return ServiceScorer(
        task,
        cfg.reward,
        cfg.gsrm,
        client,
        max_failed_fraction=cfg.rlkd.max_failed_fraction,
        stop_requested=stop_requested,
    )
