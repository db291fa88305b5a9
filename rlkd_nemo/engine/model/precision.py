"""Precision, layer implementation and fused kernels: settings and what is installed, to Megatron's arguments.

Two implementations of a layer: Megatron's own linear layers around PyTorch's fused attention (`local`), and Transformer
Engine's (`transformer_engine`), which alone can compute in FP8. Both have the same parameters, store checkpoints under the
same names, and differ in the names of two norms (`linear_qkv.layer_norm_weight`, `linear_fc1.layer_norm_weight`).

Never on: `persist_layer_norm` (apex has no persistent RMSNorm), Megatron's masked soft-max (no implementation here
stores scores) and its fused cross-entropy (`engine/token_log_probs.py` takes its place); `fp8_param`, since weights are
read by the sampler and by exports.
"""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from typing import Any

from rlkd_nemo.engine.ranks import Ranks, compute_capability

import torch
from megatron.core.models.gpt import gpt_layer_specs
from megatron.core.transformer.spec_utils import ModuleSpec

from rlkd_nemo.config.precision import READ_BY, missing, sizes
from rlkd_nemo.config.schema import Model
from rlkd_nemo.engine.model.attention import FusedAttention
from rlkd_nemo.engine.model.norm import RMSNorm
from rlkd_nemo.errors import ConfigError

PRECISIONS = {"32": torch.float32, "bf16": torch.bfloat16}
LOCAL, TRANSFORMER_ENGINE = "local", "transformer_engine"
# First compute capability whose tensor cores can do it, and the GPU it came with.
_NEEDS = {
    "delayed": ((8, 9), "Ada or Hopper"),
    "tensorwise": ((8, 9), "Ada or Hopper"),
    "blockwise": ((9, 0), "Hopper"),
    "mxfp8": ((10, 0), "Blackwell"),
}
_FP8 = ("fp8", "fp8_recipe", *READ_BY, "num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16")


@dataclass(frozen=True)
class Installed:
    """What this process can use; the defaults are a machine without anything.

    Attributes:
        capability: of the GPU, (9, 0) for Hopper; None without one.
        transformer_engine: can be imported, and there is a GPU.
        apex_weight_gradients: apex's kernels that add weight gradients straight into Megatron's fp32 buffers. Transformer
            Engine can do it by itself, but Megatron's output layer asks for these.
        compiler: Triton and a C compiler, so that torch.compile can fuse.
    """

    capability: tuple[int, int] | None = None
    transformer_engine: bool = False
    apex_weight_gradients: bool = False
    compiler: bool = False


def installed(ranks: Ranks) -> Installed:
    """What this rank can use."""
    capability = compute_capability(ranks.device)
    if capability is None:
        return Installed()
    return Installed(
        capability,
        # As Megatron found it: installed is not enough, it must have been importable.
        transformer_engine=gpt_layer_specs.HAVE_TE,
        apex_weight_gradients=importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None,
        compiler=importlib.util.find_spec("triton") is not None and any(map(shutil.which, ("cc", "gcc", "clang"))),
    )


def implementation(model: Model, has: Installed) -> str:
    """`local` or `transformer_engine`. Raises ConfigError when the second is needed and not there, or FP8 is local."""
    asked = model.transformer_impl
    if asked == LOCAL and model.fp8 is not None:
        raise ConfigError(f"model.fp8={model.fp8} would be ignored by model.transformer_impl=local; wanted auto")
    needed = asked == TRANSFORMER_ENGINE or model.fp8 is not None
    if needed and not has.transformer_engine:
        raise ConfigError(missing(model))
    return TRANSFORMER_ENGINE if needed or (asked == "auto" and has.transformer_engine) else LOCAL


def precision_arguments(model: Model, precision: str, has: Installed, *, plain_rope: bool = True) -> dict[str, Any]:
    """Arguments of TransformerConfig that depend on precision and on what is installed.

    Args: plain_rope: cosines and sines are not scaled; Transformer Engine's fused rotation would leave the scale out.
    Raises: ConfigError on an unknown precision, on FP8 without Transformer Engine, outside bf16, or on a GPU that cannot.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"trainer.precision={precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
    dtype = PRECISIONS[precision]
    engine = implementation(model, has) == TRANSFORMER_ENGINE
    arguments: dict[str, Any] = {
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": precision == "bf16",
        "persist_layer_norm": False,
        "masked_softmax_fusion": False,
        "gradient_accumulation_fusion": has.apex_weight_gradients,
        "apply_rope_fusion": engine and plain_rope,
        "bias_activation_fusion": has.compiler,
    }
    if model.fp8 is not None:
        if precision != "bf16":
            raise ConfigError(f"model.fp8={model.fp8} with trainer.precision={precision}; wanted bf16")
        wrong = list(sizes(model))  # a teacher's are not the config's
        if wrong:
            raise ConfigError(wrong)
        lowest, name = _NEEDS[model.fp8_recipe]
        if has.capability is not None and has.capability < lowest:
            found = ".".join(map(str, has.capability))
            raise ConfigError(
                f"model.fp8_recipe={model.fp8_recipe} needs a GPU from {name} on (compute capability "
                f"{'.'.join(map(str, lowest))}), found {found}; choose another recipe or model.fp8=null"
            )
        arguments |= {key: getattr(model, key) for key in _FP8}
    return arguments


def layer_spec(model: Model, has: Installed) -> tuple[ModuleSpec, Any]:
    """The layer, and the norm after the last one."""
    if implementation(model, has) == TRANSFORMER_ENGINE:
        spec = gpt_layer_specs.get_gpt_layer_with_transformer_engine_spec(qk_layernorm=model.qk_layernorm)
        return spec, gpt_layer_specs.TENorm
    spec = gpt_layer_specs.get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=model.qk_layernorm)
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = RMSNorm
    attention = spec.submodules.self_attention.submodules
    attention.core_attention = FusedAttention
    if model.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    return spec, RMSNorm
