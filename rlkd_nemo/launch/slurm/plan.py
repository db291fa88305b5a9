"""One attempt of a job inside its allocation, as assignments for the shell. No torch."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlkd_nemo.config.schema import Config
from rlkd_nemo.errors import InputError
from rlkd_nemo.launch.components import replicas
from rlkd_nemo.launch.slurm.jobs import steps, wanted
from rlkd_nemo.launch.slurm.network import network
from rlkd_nemo.launch.srun import hosts

_LOOPBACK = "127."
_MODELS_KEY = "RLKD_VLLM_KEY"  # the variable in which slurm/common.sh keeps a secret of the job's own


def addresses(shown: str) -> dict[str, str]:
    """Node names to the addresses by which Slurm reaches them, from `scontrol --oneliner show node`."""
    found = {}
    for line in shown.splitlines():
        name, address = (re.search(rf"\b{key}=(\S+)", line) for key in ("NodeName", "NodeAddr"))
        if name and address:
            found[name[1]] = address[1]
    return found


def nodes(environment: Mapping[str, str], group: int, groups: int) -> list[str]:
    """The nodes of a component. Raises: InputError outside of a job."""
    variable = "SLURM_JOB_NODELIST" if groups == 1 else f"SLURM_JOB_NODELIST_HET_GROUP_{group}"
    if variable not in environment:
        raise InputError(f"{variable} is not set: this runs inside a job of {groups} component(s) that sbatch started")
    return list(hosts(environment[variable]))


def attempt(environment: Mapping[str, str]) -> str:
    """A name for this start of the job, in the names of its logs: job id and restarts so far."""
    return f"{environment['SLURM_JOB_ID']}-{environment.get('SLURM_RESTART_COUNT', '0')}"


def assignments(kind: str, cfg: Config, environment: Mapping[str, str], shown: str) -> list[str]:
    """Lines for `eval`.

    Args:
        kind: of JOBS.
        environment: Slurm's variables, in the batch script.
        shown: `scontrol --oneliner show node` of all the job's nodes.
    Raises: InputError when the allocation is another than the layout; ConfigError.
    """
    parts = wanted(kind, cfg)
    known = addresses(shown)
    places = {part.name: nodes(environment, i, len(parts)) for i, part in enumerate(parts)}
    for part in parts:
        if len(places[part.name]) != part.nodes:
            raise InputError(
                f"Slurm gave the {part.name} {len(places[part.name])} node(s) where the layout wants {part.nodes}; submit "
                "with slurm/submit.sh, which makes the options from the config, or change the script's #SBATCH lines"
            )
    at = {name: [known.get(node, node) for node in listed] for name, listed in places.items()}
    services, main = steps(kind, cfg)
    logs = Path(cfg.exp_manager.exp_dir) / "logs"
    this = attempt(environment)
    lines = [
        _one("RLKD_MAIN", main.name),
        _one("RLKD_TASKS", str(main.tasks)),
        _list("RLKD_SERVICES", [service.name for service in services]),
        _one("RLKD_LOGS", str(logs)),
        _one("RLKD_ATTEMPT", this),
        # Where the ranks leave how they ended (launch/rank.py).
        _one("RLKD_ENDS", str((logs / f"{this}.ends").absolute())),
        _list("RLKD_OVERRIDES", _overrides(cfg, at)),
        _one("RLKD_READY_S", f"{cfg.gsrm.server.startup_s:g}"),
    ]
    for step in [*services, main]:
        lines += [
            _list(f"RLKD_SRUN_{step.name}", step.options),
            _list(f"RLKD_COMMAND_{step.name}", step.command),
            _one(f"RLKD_USES_{step.name}", step.image),
        ]
    if services:
        lines.append(_one("RLKD_READY_gsrm", f"http://{at['gsrm'][0]}:{cfg.gsrm.server.port}/ready"))
    if main.name == "trainer":
        ranks = network(environment, gpus=cfg.layout.trainer.gpus_per_node > 0)
        ranks |= {"MASTER_ADDR": at["trainer"][0], "MASTER_PORT": str(cfg.layout.trainer.port)}
        lines += [f"export {_one(name, value)}" for name, value in ranks.items()]
    return lines


def _overrides(cfg: Config, at: Mapping[str, Sequence[str]]) -> list[str]:
    """Where the parts of this attempt find one another, as overrides of the config."""
    if "gsrm" not in at:
        return []
    first = at["gsrm"][0]
    host = first if first.startswith(_LOOPBACK) else "0.0.0.0"
    found = [f"gsrm.service.urls=[http://{first}:{cfg.gsrm.server.port}]", f"gsrm.server.host={host}"]
    served: dict[str, list[str]] = {}
    for replica in replicas(cfg):
        # On one node they listen on loopback only (launch/keeper.py).
        address = at["gsrm"][replica.node] if cfg.layout.gsrm.nodes > 1 else "127.0.0.1"
        served.setdefault(replica.role, []).append(f"http://{address}:{replica.port}/v1")
    found += [f"gsrm.llm.{role}.urls=[{','.join(urls)}]" for role, urls in served.items()]
    if cfg.layout.gsrm.nodes > 1:
        # There they listen to every node: they ask for a key. Its value stands in no command line.
        without = [role for role in served if getattr(cfg.gsrm.llm, role).api_key_env is None]
        found += [f"gsrm.llm.{role}.api_key_env={_MODELS_KEY}" for role in without]
    return found


def _one(name: str, value: str) -> str:
    return f"{name}={shlex.quote(value)}"


def _list(name: str, values: Sequence[str]) -> str:
    return f"{name}=({' '.join(map(shlex.quote, values))})"
