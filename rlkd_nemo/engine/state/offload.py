"""Optimizer states on the host while the device samples.

Megatron's `offload_to_cpu` moves everything the optimizer knows. With undivided fp32 weights, or where Transformer Engine
keeps the masters, that is the model's own weights: the sampler would find them gone, and what comes back is no longer
part of the buffers that gradients and updates go by. So only what is the optimizer's own moves here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer

from rlkd_nemo.engine.state.distributed import each


class StateOffload:
    """Moves moments and master weights of `optimizer` between `device` and the host; the same bits come back.

    Host memory is pinned where `device` is a GPU, taken at the first use and kept: as much as the states have.

    Args: model: whose parameters and buffers stay where they are.
    """

    def __init__(self, optimizer: MegatronOptimizer, model: torch.nn.Module, device: torch.device) -> None:
        self.optimizer, self.model, self.device = optimizer, model, device
        self.away = False
        self._host: dict[int, torch.Tensor] = {}

    def offload(self) -> None:
        """To the host; nothing if they are there."""
        if self.away:
            return
        for number, (holder, name) in enumerate(self._places()):
            _put(holder, name, self._to_host(number, _get(holder, name)))
        self.away = True

    def reload(self) -> None:
        """Back to the device; nothing if they never left."""
        if not self.away:
            return
        for holder, name in self._places():
            value = _get(holder, name)
            # A copy even where host and device are one: the host's buffer is used again.
            _put(holder, name, value.to(self.device, copy=True))
        self.away = False

    def _places(self) -> Iterator[tuple[Any, str]]:
        """Where a tensor of the optimizer's own hangs: (a parameter, "data") or (a state, its name), always in order."""
        models = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        for one in each(self.optimizer):
            for group in one.optimizer.param_groups:
                for parameter in group["params"]:
                    state = one.optimizer.state.get(parameter, {})
                    if parameter.untyped_storage().data_ptr() not in models:
                        yield parameter, "data"
                    for name in sorted(state):
                        # PyTorch's AdamW keeps its count of steps on the host already, and wants it there.
                        if name != "step" and isinstance(state[name], torch.Tensor):
                            yield state, name

    def _to_host(self, number: int, value: torch.Tensor) -> torch.Tensor:
        host = self._host.get(number)
        if host is None or host.shape != value.shape or host.dtype != value.dtype:
            pinned = self.device.type == "cuda"
            host = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=pinned)
            self._host[number] = host
        return host.copy_(value)


def _get(holder: Any, name: str) -> torch.Tensor:
    return holder[name] if isinstance(holder, dict) else getattr(holder, name)


def _put(holder: Any, name: str, value: torch.Tensor) -> None:
    if isinstance(holder, dict):
        holder[name] = value
    else:
        setattr(holder, name, value)
