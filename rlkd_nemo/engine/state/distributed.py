"""Megatron's distributed optimizer, made to resume exactly, and its weights settled before they are read.

Megatron 0.16.1 stores a wrong state, silently, when there are several buckets (overlap, tied embeddings). And with
PyTorch's AdamW, which counts steps for each parameter, its loading fails twice and then goes silently wrong; the Adams of
Transformer Engine and apex count for a group and are spared that. tests/engine/state/test_distributed.py shows each fault.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import ChainedOptimizer, MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

# Gathered and cut along the parameters themselves, so that any layout can read what any other wrote.
STORED_AS = {"distrib_optim_sharding_type": "fully_reshardable"}


class ResumableOptimizer(DistributedOptimizer):
    """`DistributedOptimizer` that continues where it was saved."""

    def get_parameter_state_dp_zero(self, *args: Any, **kwargs: Any) -> Any:
        """Megatron's flat buffers of masters and moments, but with every bucket where it lies in the buffer.

        Megatron closes the gaps between buckets, then cuts out each parameter where it lies with them: behind the first
        gap every parameter would be stored with a piece of its neighbour.
        """
        state = super().get_parameter_state_dp_zero(*args, **kwargs)
        for number, buffer in enumerate(self.buffers if state is not None else ()):
            for tensors in state[number].values():
                for name in ("param", "exp_avg", "exp_avg_sq"):
                    spaced, start = torch.zeros(buffer.numel), 0
                    for bucket in buffer.buckets:
                        piece = tensors[name][start : start + bucket.numel_unpadded]
                        spaced[bucket.offset : bucket.offset + len(piece)] = piece
                        start += len(piece)
                    tensors[name] = spaced
        return state

    def sharded_state_dict(self, model_state: Any, is_loading: bool = False, *args: Any, **kwargs: Any) -> Any:
        """As Megatron's; an optimizer that never stepped gets a state to be filled, which Megatron takes for granted."""
        if is_loading and isinstance(self.optimizer, torch.optim.AdamW):
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    if not self.optimizer.state[parameter]:
                        self.optimizer.state[parameter] = {
                            "step": torch.tensor(0.0),
                            "exp_avg": torch.zeros_like(parameter),
                            "exp_avg_sq": torch.zeros_like(parameter),
                        }
        return super().sharded_state_dict(model_state, is_loading, *args, **kwargs)

    def load_state_dict(self, state_dict: Any) -> None:
        """As Megatron's, but where parameters count their steps, each has its own count.

        Megatron hands all the same tensor: every step would then count once for each parameter, and Adam's bias
        corrections be those of another step, from the second update after a resume.
        """
        super().load_state_dict(state_dict)
        for state in self.optimizer.state.values():
            if "step" in state:
                state["step"] = state["step"].clone()

    def _set_main_param_and_optimizer_states(self, model_param: torch.Tensor, tensors: dict[str, Any]) -> None:
        """As Megatron's, which asks for a `step` that it never stored: that stands with the groups, loaded already."""
        group, place = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][place]]
        if "step" in state:
            tensors = {"step": state["step"], **tensors}
        super()._set_main_param_and_optimizer_states(model_param, tensors)


def each(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    """The optimizers in a chain, or the one."""
    return list(optimizer.chained_optimizers) if isinstance(optimizer, ChainedOptimizer) else [optimizer]


def make_resumable(optimizer: MegatronOptimizer) -> None:
    """Turn distributed optimizers into `ResumableOptimizer`s; others stay as they are."""
    for one in each(optimizer):
        if type(one) is DistributedOptimizer:
            one.__class__ = ResumableOptimizer


def settle(wrapped: DistributedDataParallel) -> None:
    """Bring in every updated weight that is still on its way. All data-parallel ranks call together."""
    for group in wrapped.bucket_groups:
        if group.param_gather_handle is not None or not group.param_gather_dispatched:
            group.start_param_sync(force_sync=True)
