"""What must hold within the job's layout on a cluster, and between it and the rest of the config. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from rlkd_nemo.config import duration
from rlkd_nemo.config.schema import Config
from rlkd_nemo.launch.components import parts, replicas

_LARGEST_PORT = 65535


def problems(cfg: Config) -> Iterator[str]:
    """Every broken rule of `layout` as one sentence with its key."""
    layout = cfg.layout
    try:
        limit = duration.seconds(layout.time_limit)
    except ValueError as err:
        yield f"layout.time_limit={err}"
    else:
        if layout.signal_s >= limit:
            yield (
                f"layout.signal_s={layout.signal_s} is no shorter than layout.time_limit={layout.time_limit}: the job would "
                "be told to stop before it began; lower the first"
            )
    yield from _trainer(cfg)
    yield from _gsrm(cfg)
    yield from _ports(cfg)


def _trainer(cfg: Config) -> Iterator[str]:
    gpus, ranks = cfg.layout.trainer.gpus_per_node, cfg.trainer.devices
    if gpus > 0 and gpus != ranks:
        yield (
            f"layout.trainer.gpus_per_node={gpus}, but trainer.devices={ranks} ranks a node; wanted one GPU a rank: make "
            "them equal"
        )
    if gpus > 0 and cfg.trainer.accelerator == "cpu":
        yield f"layout.trainer.gpus_per_node={gpus} with trainer.accelerator=cpu would stand idle; wanted 0, or gpu"


def _gsrm(cfg: Config) -> Iterator[str]:
    gsrm, part = cfg.gsrm, cfg.layout.gsrm
    if part.nodes > 0 and gsrm.scorer != "service":
        yield (
            f"layout.gsrm.nodes={part.nodes} would score nothing, since gsrm.scorer={gsrm.scorer}; wanted "
            "gsrm.scorer=service, or 0 nodes"
        )
    served = [(role, model) for role, model in parts(cfg) if model.replicas > 0]
    for role, model in served:
        key = f"layout.gsrm.{role}"
        if part.nodes < 1:
            yield f"{key}.replicas={model.replicas}, but layout.gsrm.nodes=0 leaves no node for them; change one"
        if getattr(gsrm, role) != "llm":
            yield f"{key}.replicas={model.replicas} would be asked nothing: gsrm.{role}={getattr(gsrm, role)}; wanted llm"
        urls = getattr(gsrm.llm, role).urls
        if part.nodes == 1 and sorted(map(_port, urls)) != list(range(model.port, model.port + model.replicas)):
            yield (
                f"gsrm.llm.{role}.urls={urls} are not the {model.replicas} copies that {key} starts on ports {model.port} to "
                f"{model.port + model.replicas - 1}; wanted http://127.0.0.1:<port>/v1 for each of them"
            )
        if not model.weights:
            yield f"{key}.weights is not set, but {key}.replicas={model.replicas}; wanted what vLLM is to serve"
    if served and part.nodes > 0:
        try:
            replicas(cfg)
        except ValueError as err:
            yield (
                f"layout.gsrm.nodes={part.nodes} x layout.gsrm.gpus_per_node={part.gpus_per_node} are too few: {err}; raise "
                "them, or lower replicas or tensor_parallel_size"
            )


def _port(url: str) -> int:
    try:
        return urlsplit(url).port or 0
    except ValueError:
        return 0


def _ports(cfg: Config) -> Iterator[str]:
    """Ports of the GSRM's nodes and of the trainer's first one; all differ, since nodes may be one machine (cpu_loopback)."""
    taken: dict[int, str] = {}
    wanted = [("gsrm.server.port", cfg.gsrm.server.port)] if cfg.layout.gsrm.nodes else []
    for role, model in parts(cfg):
        wanted += [(f"layout.gsrm.{role}.port + {copy}", model.port + copy) for copy in range(model.replicas)]
    for key, port in [*wanted, ("layout.trainer.port", cfg.layout.trainer.port)]:
        if port > _LARGEST_PORT:
            yield f"{key} = {port} is no port; wanted at most {_LARGEST_PORT}"
        if port and port in taken:
            yield f"{key} = {port} is taken by {taken[port]}; wanted a port of its own"
        taken[port] = key
