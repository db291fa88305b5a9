"""Rules for FP8 and for the layers that can run it. No torch: a login node can check them.

Megatron takes FP8 settings without Transformer Engine, and recipe settings that the recipe never reads, and goes on in
high precision without a word: every such setting is refused here.
"""

from __future__ import annotations

from collections.abc import Iterator

from rlkd_nemo.config.memory import has_transformer_engine
from rlkd_nemo.config.schema import Config, Gate, Model

FP8_FORMATS = ("e4m3", "hybrid")
RECIPES = ("delayed", "tensorwise", "blockwise", "mxfp8")
# What Megatron 0.16.1 hands each recipe; the rest it drops.
READ_BY: dict[str, tuple[str, ...]] = {
    "fp8_margin": ("delayed",),
    "fp8_amax_history_len": ("delayed",),
    "fp8_amax_compute_algo": ("delayed",),
    "fp8_wgrad": ("delayed",),
    "fp8_dot_product_attention": ("delayed", "tensorwise"),
    "fp8_multi_head_attention": ("delayed",),
    "first_last_layers_bf16": ("tensorwise", "blockwise", "mxfp8"),
}
_BF16_LAYERS = ("num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16")


def missing(model: Model) -> str:
    """The sentence for a model that needs Transformer Engine where there is none."""
    asked = f"model.fp8={model.fp8}" if model.fp8 else f"model.transformer_impl={model.transformer_impl}"
    return (
        f"{asked} needs Transformer Engine, which is not installed: pip install 'rlkd_nemo[fp8]' on a machine with a GPU, "
        "or set model.fp8=null and model.transformer_impl=auto"
    )


def fp8_multiple(model: Model) -> int:
    """What every side of an FP8 matrix product, tokens included, must divide by; 1 without FP8."""
    if model.fp8 is None:
        return 1
    return 32 if model.fp8_recipe == "mxfp8" else 16


def problems(cfg: Config) -> Iterator[str]:
    """Every broken rule as one sentence."""
    model = cfg.model
    if model.transformer_impl == "transformer_engine" or model.fp8 is not None:
        if not has_transformer_engine():
            yield missing(model)
        if cfg.trainer.accelerator == "cpu":
            yield "trainer.accelerator=cpu, but Transformer Engine (model.fp8, model.transformer_impl) runs on GPUs only"
    if model.fp8 is None:
        for key in ("fp8_recipe", *READ_BY, *_BF16_LAYERS):
            if getattr(model, key) != getattr(Model(), key):
                yield f"model.{key}={getattr(model, key)} is not read while model.fp8 is null; remove it or set model.fp8"
        return
    if model.fp8 not in FP8_FORMATS:
        yield f"model.fp8={model.fp8!r} is unknown; wanted null or one of {', '.join(FP8_FORMATS)}"
    if model.transformer_impl == "local":
        yield (
            f"model.fp8={model.fp8} with model.transformer_impl=local: Megatron's own layers would compute in high "
            "precision without a word; wanted transformer_impl=auto"
        )
    if cfg.trainer.precision != "bf16":
        yield f"model.fp8={model.fp8} with trainer.precision={cfg.trainer.precision}; wanted bf16 around the FP8 products"
    yield from _recipe(model)
    yield from sizes(model)


def sampler(cfg: Config) -> Iterator[str]:
    """What FP8 asks of a run that samples: its rollouts are decoded in bf16."""
    model = cfg.model
    if model.fp8 is None and cfg.gate.max_log_prob_gap_fp8 != Gate().max_log_prob_gap_fp8:
        yield (
            f"gate.max_log_prob_gap_fp8={cfg.gate.max_log_prob_gap_fp8} is not read while model.fp8 is null; wanted "
            "gate.max_log_prob_gap"
        )
    if model.fp8 is not None and cfg.objective is not None and cfg.objective.tis_cap is None:
        yield (
            f"objective.tis_cap is not set, but with model.fp8={model.fp8} the sampler decodes in bf16 what trains in FP8, "
            "and the ratios would be off by the difference; wanted truncated importance sampling, tis_cap=2 for example"
        )


def _recipe(model: Model) -> Iterator[str]:
    if model.fp8_recipe not in RECIPES:
        return  # named by its range
    for key, recipes in READ_BY.items():
        if model.fp8_recipe not in recipes and getattr(model, key) != getattr(Model(), key):
            yield (
                f"model.{key}={getattr(model, key)} is not read by model.fp8_recipe={model.fp8_recipe}; "
                f"wanted its default or one of {', '.join(recipes)}"
            )
    if model.fp8_multi_head_attention and not model.fp8_dot_product_attention:
        yield "model.fp8_multi_head_attention=True needs model.fp8_dot_product_attention=True; set it"
    counts = [getattr(model, key) for key in _BF16_LAYERS]
    if not model.first_last_layers_bf16:
        for key, count in zip(_BF16_LAYERS, counts):
            if count != getattr(Model(), key):
                yield f"model.{key}={count} is not read while model.first_last_layers_bf16=False; remove it or set that"
        return
    most = model.num_layers // max(model.pipeline_model_parallel_size, 1)
    for key, count in zip(_BF16_LAYERS, counts):
        if count > most:
            yield f"model.{key}={count} is more than the {most} layers of a pipeline stage, which Megatron refuses"
    if sum(counts) >= model.num_layers:
        yield (
            f"model.num_layers_at_start_in_bf16 + model.num_layers_at_end_in_bf16 = {sum(counts)} leaves none of "
            f"model.num_layers={model.num_layers} in FP8; lower them or set model.fp8=null"
        )


def sizes(model: Model) -> Iterator[str]:
    """Sides of the matrices, as a tensor-parallel rank holds them, that FP8 products cannot have."""
    tensor, heads = model.tensor_model_parallel_size, model.num_attention_heads
    if min(tensor, heads, model.num_query_groups) < 1:
        return  # named by their range
    head = model.kv_channels or model.hidden_size // heads
    qkv = (heads + 2 * model.num_query_groups) * head
    sides = {
        "model.hidden_size": model.hidden_size,
        "model.ffn_hidden_size / model.tensor_model_parallel_size": model.ffn_hidden_size // tensor,
        "model.num_attention_heads x the size of a head / model.tensor_model_parallel_size": heads * head // tensor,
        "rows of the QKV matrix / model.tensor_model_parallel_size": qkv // tensor,
    }
    multiple = fp8_multiple(model)
    for name, side in sides.items():
        if side % multiple:
            yield f"{name} = {side} with model.fp8={model.fp8}; {model.fp8_recipe} products want a multiple of {multiple}"
