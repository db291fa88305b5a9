"""The one device seam: process groups and devices, CUDA with NCCL or CPU with gloo.

Megatron-Core names CUDA literally (devices, RNG, streams, tensor type strings). Where there is no GPU, `_serve_cpu`
answers those calls from the CPU, so that Megatron itself runs there; it is not a second model. Nothing is patched on a
machine with a GPU. No other file may call `torch.cuda`.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from rlkd_nemo.errors import ConfigError
from rlkd_nemo.lifecycle import heartbeat

log = logging.getLogger(__name__)

_FACTORIES = (
    "tensor", "as_tensor", "zeros", "ones", "empty", "full", "arange", "rand", "randn",
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like",
)  # fmt: skip


class _Idle:
    """Stand-in for CUDA streams and events on CPU; a class, since libraries use the names in annotations."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> _Idle:
        return self

    def __exit__(self, *exc: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def wrapped(*args: Any, **kwargs: Any) -> torch.Tensor:
        device = kwargs.get("device")
        if device is not None and (isinstance(device, int) or str(device).startswith("cuda")):
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return wrapped


def _serve_cpu() -> None:
    """Answer Megatron's CUDA calls from the CPU. Idempotent; refuses to act where there is a GPU."""
    if torch.cuda.is_available():
        raise RuntimeError("the CPU shim must not be installed on a machine with a GPU")
    if getattr(torch, "_rlkd_cpu_ranks", False):
        return
    torch._rlkd_cpu_ranks = True  # type: ignore[attr-defined]
    cuda = torch.cuda
    cpu = torch.device("cpu")
    cuda.current_device = lambda: cpu  # type: ignore[assignment,return-value]
    for name in ("set_device", "synchronize", "empty_cache", "set_stream"):
        setattr(cuda, name, lambda *args, **kwargs: None)
    cuda.Stream = cuda.Event = _Idle  # type: ignore[assignment,misc]
    for name in ("current_stream", "default_stream", "stream"):
        setattr(cuda, name, _Idle)
    for module in (cuda, cuda.random):
        module.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()  # type: ignore[attr-defined]
        module.set_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)  # type: ignore[attr-defined]
    cuda.manual_seed = torch.manual_seed  # type: ignore[assignment]
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign,assignment]
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))

    # The optimizer and gradient clipping compare `tensor.type()` with "torch.cuda.FloatTensor" and the like.
    plain_type = torch.Tensor.type

    def type_(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is not None:
            return plain_type(self, dtype, *args, **kwargs)
        return plain_type(self).replace("torch.", "torch.cuda.", 1)

    torch.Tensor.type = type_  # type: ignore[method-assign,assignment]

    from megatron.core.tensor_parallel import random as megatron_random

    megatron_random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)


@dataclass(frozen=True)
class Ranks:
    """Where this process stands. Sizes and ranks of the tensor, pipeline, data and context axes; `device` for tensors.

    Context-parallel ranks of one data-parallel rank hold parts of the same rows.
    """

    device: torch.device
    world_rank: int
    world_size: int
    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int
    dp_rank: int
    dp_size: int
    cp_rank: int = 0
    cp_size: int = 1

    @property
    def is_last_stage(self) -> bool:
        """True on pipeline ranks that hold the output layer."""
        return self.pp_rank == self.pp_size - 1

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes logs and reports."""
        return self.world_rank == 0

    @property
    def tp_group(self) -> dist.ProcessGroup:
        """Tensor-parallel group."""
        return _parallel_state().get_tensor_model_parallel_group()

    @property
    def pp_group(self) -> dist.ProcessGroup:
        """Pipeline group."""
        return _parallel_state().get_pipeline_model_parallel_group()

    @property
    def dp_group(self) -> dist.ProcessGroup:
        """Data-parallel group: ranks with other rows."""
        return _parallel_state().get_data_parallel_group()

    @property
    def cp_group(self) -> dist.ProcessGroup:
        """Context-parallel group: ranks with other tokens of the same rows."""
        return _parallel_state().get_context_parallel_group()

    @property
    def token_group(self) -> dist.ProcessGroup:
        """All ranks with other tokens: the data and the context axis together."""
        return _parallel_state().get_data_parallel_group(with_context_parallel=True)


def _import_megatron() -> None:
    """Import megatron.core without two things that nothing here uses and that are half of its import time.

    It decorates fused kernels with torch.compile, which loads the whole inductor; the specs of CPU ranks call none of
    them. And it imports wandb for an inference engine that is not used.
    """
    compile_, wandb = torch.compile, sys.modules.get("wandb")
    if not torch.cuda.is_available():
        torch.compile = lambda model=None, **options: model if model is not None else lambda f: f  # type: ignore[assignment]
    if wandb is None:
        sys.modules["wandb"] = None  # type: ignore[assignment]
    try:
        import megatron.core.models.gpt  # noqa: F401
    finally:
        torch.compile = compile_
        if wandb is None:
            del sys.modules["wandb"]


_import_megatron()


def _parallel_state():
    from megatron.core import parallel_state

    return parallel_state


def wants_gpu(accelerator: str) -> bool:
    """Resolve `trainer.accelerator`. Raises ConfigError when a GPU is asked for and there is none."""
    if accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()):
        return False
    if not torch.cuda.is_available():
        raise ConfigError("trainer.accelerator=gpu, but torch finds no CUDA device; use auto or cpu")
    return True


def init_ranks(
    tensor_model_parallel_size: int = 1,
    pipeline_model_parallel_size: int = 1,
    *,
    context_parallel_size: int = 1,
    accelerator: str = "auto",
    seed: int = 0,
    timeout_s: float = 600.0,
    heartbeat_s: float | None = None,
) -> Ranks:
    """Join the world that the launcher set up (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) and lay out its axes.

    Without those variables a world of one is made. Calling it again with another layout re-lays the same processes.

    Args:
        seed: of Megatron's RNG tracker and torch, numpy and random.
        timeout_s: a collective that waits longer raises on every rank.
        heartbeat_s: a rank without a sign of life for so long ends the job (lifecycle/heartbeat.py); null: nobody looks.
    Raises: ConfigError when the world does not divide by TP x PP x CP.
    """
    gpu = wants_gpu(accelerator)
    if not gpu:
        if torch.cuda.is_available():
            raise ConfigError("trainer.accelerator=cpu on a machine with a GPU: set CUDA_VISIBLE_DEVICES='' as well")
        _serve_cpu()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if not dist.is_initialized():
        alone = "RANK" not in os.environ
        store = dist.HashStore() if alone else None
        dist.init_process_group(
            "nccl" if gpu else "gloo",
            store=store,
            rank=0 if alone else -1,
            world_size=1 if alone else -1,
            timeout=timedelta(seconds=timeout_s),
        )
    world = dist.get_world_size()
    if heartbeat_s is not None:
        heartbeat.start(dist.get_rank(), world, silence_s=heartbeat_s)
    model_ranks = tensor_model_parallel_size * pipeline_model_parallel_size * context_parallel_size
    if world % model_ranks:
        raise ConfigError(
            f"{world} ranks do not divide into model.tensor_model_parallel_size={tensor_model_parallel_size} x "
            f"model.pipeline_model_parallel_size={pipeline_model_parallel_size} x "
            f"model.context_parallel_size={context_parallel_size}; "
            f"start a multiple of {model_ranks} ranks (trainer.devices x trainer.num_nodes)"
        )
    state = _parallel_state()
    if state.model_parallel_is_initialized():
        state.destroy_model_parallel()
    state.initialize_model_parallel(
        tensor_model_parallel_size,
        pipeline_model_parallel_size,
        context_parallel_size=context_parallel_size,
        create_gloo_process_groups=True,
    )
    seed_everything(seed)
    return Ranks(
        device=device,
        world_rank=dist.get_rank(),
        world_size=world,
        tp_rank=state.get_tensor_model_parallel_rank(),
        tp_size=tensor_model_parallel_size,
        pp_rank=state.get_pipeline_model_parallel_rank(),
        pp_size=pipeline_model_parallel_size,
        dp_rank=state.get_data_parallel_rank(),
        dp_size=state.get_data_parallel_world_size(),
        cp_rank=state.get_context_parallel_rank(),
        cp_size=context_parallel_size,
    )


def seed_everything(seed: int) -> None:
    """Seed torch, numpy, random and Megatron's tracker (which differs by tensor-parallel rank, as it must)."""
    import numpy as np
    from megatron.core import tensor_parallel

    random.seed(seed)
    np.random.seed(seed % 2**32)
    tensor_parallel.random.initialize_rng_tracker(force_reset=True)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """This rank's random number generators: torch on host and device, Megatron's tracker, numpy, random."""
    import numpy as np
    from megatron.core import tensor_parallel

    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(),
        "tracker": tensor_parallel.get_cuda_rng_tracker().get_states(),
        "numpy": (name, torch.from_numpy(keys.astype("int64")), position, has_gauss, gauss),
        "random": random.getstate(),
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Undo whatever was drawn since `rng_state`."""
    import numpy as np
    from megatron.core import tensor_parallel

    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype("uint32"), position, has_gauss, gauss))
    random.setstate(state["random"])
    tensor_parallel.get_cuda_rng_tracker().set_states(state["tracker"])
    torch.cuda.set_rng_state(state["device"])
    torch.set_rng_state(state["torch"])  # last: on CPU ranks the device's generator is this one


def compute_capability(device: torch.device) -> tuple[int, int] | None:
    """Of a GPU, (9, 0) for Hopper; None on CPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def release_cached_memory() -> None:
    """Give device memory that PyTorch keeps for later back, for others on the same device. Nothing on CPU ranks."""
    torch.cuda.empty_cache()


def close_ranks() -> None:
    """Leave the process groups; safe to call twice."""
    heartbeat.stop()
    state = _parallel_state()
    if state.model_parallel_is_initialized():
        state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
