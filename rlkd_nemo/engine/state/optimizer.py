"""Megatron's optimizer, learning-rate schedule and data-parallel wrapper for a model of `build_model`."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from rlkd_nemo.config.memory import NO_TRANSFORMER_ENGINE, has_transformer_engine
from rlkd_nemo.config.schema import Optim
from rlkd_nemo.engine.model.chunks import Chunks, chunks_of
from rlkd_nemo.engine.state.distributed import make_resumable
from rlkd_nemo.errors import ConfigError

# Megatron names Transformer Engine's fp8 states by the bytes they are stored in.
_STATE_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.uint8}


def wrap_for_training(model: torch.nn.Module, optim: Optim) -> torch.nn.Module:
    """Data-parallel wrapper whose gradients are sums: the engine's token weights are global already.

    Chunks are wrapped one by one; without the distributed optimizer and overlap, which config/rules.py sees to.

    Megatron's `check_for_nan_in_grad` stays off. It raises on the rank that has the NaN, in the middle of a collective
    that the others wait in until it times out; `RLKDActor.update` looks at the loss and the reduced norm instead, on
    all ranks alike, before anything is stepped. (`step()` itself reports success on NaN.)
    """
    config = model.hidden_model.config
    chunks = chunks_of(model)
    wrapped = [
        DistributedDataParallel(
            config,
            DistributedDataParallelConfig(
                grad_reduce_in_fp32=True,
                use_distributed_optimizer=optim.use_distributed_optimizer,
                overlap_grad_reduce=optim.overlap_grad_sync,
                overlap_param_gather=optim.overlap_param_sync,
                bucket_size=optim.bucket_size,
            ),
            chunk,
        )
        for chunk in chunks
    ]
    if optim.overlap_grad_sync:
        # Until an update's last micro-batch nothing may travel. Each pipeline stage begins with its own last one.
        config.no_sync_func = wrapped[0].no_sync
    if optim.overlap_param_sync:
        model.hidden_model.await_weights(wrapped[0])
    config.finalize_model_grads_func = lambda models, num_tokens=None, **kwargs: finalize_model_grads(models, None)
    return Chunks(wrapped) if isinstance(model, Chunks) else wrapped[0]


def optimizer_settings(optim: Optim, params_dtype: torch.dtype, gradient_clip_val: float) -> dict[str, Any]:
    """The arguments of Megatron's OptimizerConfig. Gradients are fp32 whatever the states are."""
    settings = {
        "optimizer": "adam",
        "lr": optim.lr,
        "min_lr": optim.sched.min_lr,
        "weight_decay": optim.weight_decay,
        "adam_beta1": optim.betas[0],
        "adam_beta2": optim.betas[1],
        "adam_eps": optim.eps,
        "clip_grad": gradient_clip_val,
        "bf16": params_dtype == torch.bfloat16,
        "use_distributed_optimizer": optim.use_distributed_optimizer,
        "overlap_param_gather": optim.overlap_param_sync,
        "params_dtype": params_dtype,
    }
    if optim.use_precision_aware_optimizer:
        settings |= {
            "use_precision_aware_optimizer": True,
            "main_params_dtype": _STATE_TYPES[optim.main_params_dtype],
            "exp_avg_dtype": _STATE_TYPES[optim.exp_avg_dtype],
            "exp_avg_sq_dtype": _STATE_TYPES[optim.exp_avg_sq_dtype],
            # An fp32 master is a bf16 weight and sixteen more bits: those alone are stored.
            "store_param_remainders": optim.main_params_dtype == "fp32",
        }
    return settings


def build_optimizer(
    model: torch.nn.Module, optim: Optim, *, gradient_clip_val: float, total_updates: int
) -> tuple[MegatronOptimizer, OptimizerParamScheduler]:
    """AdamW and its schedule. `total_updates` is the decay length where `optim.sched.decay_steps` is null.

    Raises: ConfigError when precision-aware states are asked for without Transformer Engine.
    """
    config = model.config
    if optim.use_precision_aware_optimizer and not has_transformer_engine():
        raise ConfigError(NO_TRANSFORMER_ENGINE)
    settings = optimizer_settings(optim, config.params_dtype, gradient_clip_val)
    optimizer = get_megatron_optimizer(OptimizerConfig(**settings), chunks_of(model))
    make_resumable(optimizer)
    if config.bf16:
        config.grad_scale_func = optimizer.scale_loss
    decay = optim.sched.decay_steps or total_updates
    ratio = optim.sched.warmup_ratio
    warmup = optim.sched.warmup_steps if ratio is None else round(ratio * decay)
    scheduler = OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=optim.lr,
        min_lr=optim.sched.min_lr,
        lr_warmup_steps=warmup,
        lr_decay_steps=max(decay, warmup + 1),
        lr_decay_style=optim.sched.name,
        start_wd=optim.weight_decay,
        end_wd=optim.weight_decay,
        wd_incr_steps=0,
        wd_incr_style="constant",
    )
    return optimizer, scheduler
