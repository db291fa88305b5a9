"""`layout`: the job on a cluster."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class TrainerPart:
    """`layout.trainer`: the trainer's nodes, of which there are trainer.num_nodes with trainer.devices ranks each."""

    gpus_per_node: int = 0  # one a rank; 0: ranks on CPUs, or a machine without a scheduler
    cpus_per_task: int = 1  # of a rank; 8 to 16 feed a GPU
    mem_gb: int | None = None  # memory of a node, GB; null: all of it
    port: int = 29500  # where the ranks meet, on the first node
    image: str = "trainer"  # container: the site file says which image trainer, vllm and cpu stand for


@dataclass
class VllmPart:
    """Copies of one model behind vLLM on the GSRM's nodes: copy i listens on port + i."""

    replicas: int = 0  # 0: none is started; the endpoints of gsrm.llm are somebody else's
    tensor_parallel_size: int = 1  # GPUs a copy, all of one node
    port: int = 8000
    weights: str | None = None  # directory, or name on the hub, of what is served
    max_model_len: int = 32768  # tokens of prompt and reply (RLKD's GSRM: 32,768 positions)


@dataclass
class GsrmPart:
    """`layout.gsrm`: nodes that score structure: the GSRM's server (gsrm.server) on the first one, and its models."""

    nodes: int = 0  # 0: no component of its own; the trainer scores by itself, or asks a server that runs elsewhere
    gpus_per_node: int = 0
    cpus_per_task: int = 8
    mem_gb: int | None = None
    image: str = "vllm"
    decomposer: VllmPart = field(default_factory=VllmPart)
    judge: VllmPart = field(default_factory=lambda: VllmPart(port=8100))


@dataclass
class Layout:
    """The job on a cluster: components of one heterogeneous Slurm job. What a site calls its things is not here."""

    time_limit: str = "00:04:00:00"  # DD:HH:MM:SS
    signal_s: int = 600  # SIGUSR1 so long before that end: save, requeue, go on
    trainer: TrainerPart = field(default_factory=TrainerPart)
    gsrm: GsrmPart = field(default_factory=GsrmPart)
