"""The components of a run's job, with every number that a launcher needs: nodes, tasks, GPUs, ports. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from rlkd_nemo.config.schema import Config, VllmPart


@dataclass(frozen=True)
class Component:
    """Nodes of one kind, and what each of them holds.

    Attributes:
        tasks_per_node: processes that the launcher starts there: ranks of the trainer, one keeper of the GSRM's services.
        mem_gb: memory of a node; None: all of it.
        image: trainer, vllm or cpu, for the site file to resolve.
    """

    name: str
    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    cpus_per_task: int
    mem_gb: int | None
    image: str


@dataclass(frozen=True)
class Replica:
    """One copy of a model behind vLLM. `node` counts from 0 within the GSRM's component; `gpus` are of that node."""

    role: str
    node: int
    gpus: tuple[int, ...]
    port: int
    weights: str


def components(cfg: Config) -> list[Component]:
    """The trainer first, whose nodes and ranks are `trainer.num_nodes` and `trainer.devices`; then the GSRM's if any."""
    trainer, gsrm = cfg.layout.trainer, cfg.layout.gsrm
    found = [
        Component(
            name="trainer",
            nodes=cfg.trainer.num_nodes,
            tasks_per_node=cfg.trainer.devices or 1,
            gpus_per_node=trainer.gpus_per_node,
            cpus_per_task=trainer.cpus_per_task,
            mem_gb=trainer.mem_gb,
            image=trainer.image,
        )
    ]
    if gsrm.nodes:
        found.append(
            Component(
                name="gsrm",
                nodes=gsrm.nodes,
                tasks_per_node=1,
                gpus_per_node=gsrm.gpus_per_node,
                cpus_per_task=gsrm.cpus_per_task,
                mem_gb=gsrm.mem_gb,
                image=gsrm.image,
            )
        )
    return found


def replicas(cfg: Config) -> list[Replica]:
    """Where each vLLM server of the GSRM's component runs: nodes filled one after the other, no copy over two of them.

    Raises: ValueError when they do not fit, which `config/layout_rules.py` reports before.
    """
    gsrm = cfg.layout.gsrm
    node = used = 0
    found = []
    for role, part in parts(cfg):
        for copy in range(part.replicas):
            if used + part.tensor_parallel_size > gsrm.gpus_per_node:
                node, used = node + 1, 0
            if node >= gsrm.nodes or part.tensor_parallel_size > gsrm.gpus_per_node:
                raise ValueError(
                    f"{role} {copy + 1} of {part.replicas} finds no node with {part.tensor_parallel_size} free GPUs"
                )
            gpus = tuple(range(used, used + part.tensor_parallel_size))
            used += part.tensor_parallel_size
            found.append(Replica(role, node, gpus, part.port + copy, part.weights or ""))
    return found


def parts(cfg: Config) -> list[tuple[str, VllmPart]]:
    """The models that the GSRM's component serves, by role."""
    return [("decomposer", cfg.layout.gsrm.decomposer), ("judge", cfg.layout.gsrm.judge)]
