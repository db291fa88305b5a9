"""What NCCL, gloo and UCX are told, in one place. What the site or the user has set already stays. No torch."""

from __future__ import annotations

from collections.abc import Mapping

# Set by slurm/site.sh: the interface of the nodes' own network and the adapters of the fast one.
INTERFACE, ADAPTERS = "RLKD_NETWORK_INTERFACE", "RLKD_INFINIBAND"


def network(environment: Mapping[str, str], *, gpus: bool) -> dict[str, str]:
    """Variables for the ranks of the trainer.

    Args: gpus: do they talk over NCCL?
    """
    found: dict[str, str] = {}
    interface, adapters = environment.get(INTERFACE), environment.get(ADAPTERS)
    if interface:
        # All three, lest one of them choose a management network or a container's bridge.
        found |= {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface, "TP_SOCKET_IFNAME": interface}
    if gpus:
        # A rank whose peer is gone must not wait in NCCL for ever: the communicator is torn down, the rank ends.
        found |= {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1", "NCCL_DEBUG": "WARN"}
        # Megatron's order of kernels under tensor parallelism relies on one queue.
        found |= {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
        if adapters:
            found |= {"NCCL_IB_HCA": adapters, "UCX_NET_DEVICES": ",".join(f"{name}:1" for name in adapters.split(","))}
    return {name: value for name, value in found.items() if name not in environment}
