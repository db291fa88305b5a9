"""Environment variables that the config names and the run reads. Their values are never shown."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from rlkd_nemo.config.schema import Config
from rlkd_nemo.doctor.finding import Finding, note


def findings(cfg: Config, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Every variable that is wanted and empty or unset."""
    gsrm = cfg.gsrm
    remote = [url for url in gsrm.service.urls if not _is_loopback(url)]
    if gsrm.scorer == "service" and not environment.get(gsrm.token_env):
        if cfg.layout.gsrm.nodes > 0 and "SLURM_JOB_ID" not in environment:
            yield note(
                f"{gsrm.token_env} (gsrm.token_env) is not set: the scripts of slurm/ make a secret for each job; export one of "
                "your own where you start the GSRM's server yourself"
            )
        elif cfg.layout.gsrm.nodes > 0:
            yield Finding(
                f"environment variable {gsrm.token_env} (gsrm.token_env) is not set, but the GSRM's server is on another node "
                "(layout.gsrm.nodes), which no one else should ask; export it with a secret of your own before submission"
            )
        elif remote:
            yield Finding(
                f"environment variable {gsrm.token_env} (gsrm.token_env) is not set, but {remote[0]} (gsrm.service.urls) is "
                "another machine, whose server wants a token; export it"
            )
    for role in ("decomposer", "judge"):
        variable = getattr(gsrm.llm, role).api_key_env
        if getattr(gsrm, role) == "llm" and variable and not environment.get(variable):
            yield Finding(f"environment variable {variable} (gsrm.llm.{role}.api_key_env) is not set; export the key")
    manager = cfg.exp_manager
    if manager.create_wandb_logger and manager.wandb_mode == "online" and not environment.get("WANDB_API_KEY"):
        yield Finding(
            "environment variable WANDB_API_KEY is not set, but exp_manager.wandb_mode=online; export it, or choose offline"
        )


def _is_loopback(url: str) -> bool:
    host = ""
    try:
        host = urlsplit(url).hostname or ""
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, or no address at all
        return host == "localhost"
