"""What must hold between the settings that spare memory: sequence parallelism, recomputation, optimizer states.

Needs no torch, as `rules.py`, which asks it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from rlkd_nemo.config.schema import Config
from rlkd_nemo.config.tree import nearest


def has_transformer_engine() -> bool:
    """Whether Transformer Engine is installed; it is not imported.

    True as well where there is no torch: a login node composes for the run's environment, whose ranks look for themselves.
    """
    return importlib.util.find_spec("transformer_engine") is not None or importlib.util.find_spec("torch") is None


def problems(cfg: Config) -> Iterator[str]:
    """Every broken rule of this file as one sentence."""
    yield from _sequence_parallel(cfg)
    yield from _recompute(cfg)
    yield from _optimizer(cfg)
    yield from _states(cfg)


def _sequence_parallel(cfg: Config) -> Iterator[str]:
    model = cfg.model
    if model.sequence_parallel and model.tensor_model_parallel_size == 1:
        yield (
            "model.sequence_parallel=true cuts activations over tensor-parallel ranks, found "
            "model.tensor_model_parallel_size=1; raise it, or set sequence_parallel=false"
        )


_GRANULARITIES, _METHODS = ("full", "selective"), ("uniform", "block")


def _recompute(cfg: Config) -> Iterator[str]:
    model = cfg.model
    granularity, method = model.activations_checkpoint_granularity, model.activations_checkpoint_method
    layers = model.activations_checkpoint_num_layers
    for name, value, choices in (("granularity", granularity, _GRANULARITIES), ("method", method, _METHODS)):
        if value is not None and value not in choices:
            yield (
                f"model.activations_checkpoint_{name}={value!r} is unknown; wanted null or one of "
                f"{', '.join(choices)}{nearest(value, choices)}"
            )
            return
    if granularity != "full":
        for key, unread in (("method", method), ("num_layers", layers)):
            if unread is not None:
                yield (
                    f"model.activations_checkpoint_{key}={unread} is read with activations_checkpoint_granularity=full "
                    f"only, found {granularity or 'null'}; remove it, or choose full"
                )
        return
    if method is None or layers is None:
        yield (
            "model.activations_checkpoint_granularity=full wants activations_checkpoint_method (uniform or block) and "
            f"activations_checkpoint_num_layers, found {method or 'null'} and {layers or 'null'}; uniform and 1 keep "
            "the least"
        )
        return
    pipeline = model.pipeline_model_parallel_size
    if min(pipeline, model.num_layers, layers) < 1 or model.num_layers % pipeline:
        return  # named by other rules
    stage = model.num_layers // pipeline
    if method == "uniform" and stage % layers:
        # Megatron would ask for a layer past the last one, in the middle of a forward pass.
        yield (
            f"model.activations_checkpoint_num_layers={layers} does not divide the {stage} layers of a pipeline stage, "
            "as activations_checkpoint_method=uniform wants; choose a divisor, or method=block"
        )
    if method == "block" and layers > stage:
        yield (
            f"model.activations_checkpoint_num_layers={layers} is more than the {stage} layers of a pipeline stage; "
            "wanted at most that"
        )


def _optimizer(cfg: Config) -> Iterator[str]:
    optim = cfg.model.optim
    if optim.overlap_param_sync:
        for key in ("use_distributed_optimizer", "overlap_grad_sync"):
            if not getattr(optim, key):
                yield (
                    f"model.optim.overlap_param_sync=true wants model.optim.{key}=true, found false: the weights that "
                    "travel are those of the distributed optimizer, in the gradients' buckets; set both or neither"
                )
    if optim.bucket_size is not None and not optim.overlap_grad_sync:
        yield (
            f"model.optim.bucket_size={optim.bucket_size} is read with model.optim.overlap_grad_sync=true only; without "
            "overlap everything travels at once; remove one"
        )


NO_TRANSFORMER_ENGINE = (
    "model.optim.use_precision_aware_optimizer=true needs Transformer Engine 2.3 or newer, which is not installed here: "
    "pip install 'rlkd_nemo[fp8]' on a machine with a GPU, or set it to false"
)


def _states(cfg: Config) -> Iterator[str]:
    optim = cfg.model.optim
    if optim.use_precision_aware_optimizer:
        if not has_transformer_engine():
            yield NO_TRANSFORMER_ENGINE
        if not optim.use_distributed_optimizer:
            yield (
                "model.optim.use_precision_aware_optimizer=true is a kind of distributed optimizer, found "
                "model.optim.use_distributed_optimizer=false; set both or neither"
            )
        if cfg.trainer.precision == "32":
            yield (
                "model.optim.use_precision_aware_optimizer=true spares masters and moments of bf16 weights, found "
                "trainer.precision=32; wanted bf16"
            )
    else:
        for key in ("main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype"):
            value = getattr(optim, key)
            if value != "fp32":
                yield (
                    f"model.optim.{key}={value} is read with model.optim.use_precision_aware_optimizer=true only, found "
                    "false: every state is fp32; set one or the other"
                )
    if optim.offload_states and cfg.trainer.accelerator == "cpu":
        yield NOTHING_TO_OFFLOAD


NOTHING_TO_OFFLOAD = (
    "model.optim.offload_states=true moves optimizer states from GPU to host memory, found CPU ranks (trainer.accelerator), "
    "whose states are there already; set it to false"
)
