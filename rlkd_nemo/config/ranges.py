"""What one setting may be by itself: names out of a list, numbers within bounds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from rlkd_nemo.config import duration
from rlkd_nemo.config.precision import RECIPES
from rlkd_nemo.config.schema import Config
from rlkd_nemo.config.tree import nearest

CONSTRAIN = ("auto", "vllm", "json_schema", "none")
LIMIT_FIELDS = ("max_tokens", "max_completion_tokens")
DOMAINS = ("math", "code", "science", "puzzle")
STYLES = ("letters", "prose")
SCHEDULES = ("constant", "linear", "cosine")
IMAGES = ("trainer", "vllm", "cpu")

CHOICES: dict[str, tuple[str, ...]] = {
    "trainer.accelerator": ("auto", "cpu", "gpu"),
    "trainer.precision": ("32", "bf16"),
    "exp_manager.wandb_mode": ("offline", "online", "disabled"),
    "exp_manager.checkpoint_callback_params.mode": ("max", "min"),
    "model.optim.sched.name": SCHEDULES,
    "model.transformer_impl": ("auto", "local", "transformer_engine"),
    "model.fp8_recipe": RECIPES,
    "model.fp8_amax_compute_algo": ("most_recent", "max"),
    "model.optim.main_params_dtype": ("fp32", "fp16"),
    "model.optim.exp_avg_dtype": ("fp32", "bf16", "fp16", "fp8"),
    "model.optim.exp_avg_sq_dtype": ("fp32", "bf16", "fp16", "fp8"),
    "model.rope_scaling.type": ("none", "llama3", "yarn"),
    "model.tokenizer.library": ("task", "bytes", "huggingface"),
    "rlkd.advantage.std": ("population", "sample", "none"),
    "rlkd.dynamic_sampling.by": ("reward", "outcome"),
    "rlkd.overlong.mode": ("keep", "mask", "soft"),
    "gsrm.scorer": ("embedded", "service"),
    "gsrm.decomposer": ("text", "llm"),
    "gsrm.judge": ("exact", "normalised", "llm"),
    "gsrm.reference_mode": ("first", "best", "tree"),
    "gsrm.alignment": ("prefix", "monotone"),
    "gsrm.norm": ("teacher", "none", "max"),
    "gsrm.llm.domain": DOMAINS,
    "gsrm.training.form": ("json", "tags"),
    "gsrm.llm.judging": ("per_pair", "per_response"),
    "gsrm.label.verdicts": ("none", "per_pair", "per_response", "both"),
    "gsrm.llm.lazy": ("auto", "on", "off"),
    "gsrm.llm.decomposer.constrain": CONSTRAIN,
    "gsrm.llm.judge.constrain": CONSTRAIN,
    "layout.trainer.image": IMAGES,
    "layout.gsrm.image": IMAGES,
    "gsrm.llm.decomposer.limit_field": LIMIT_FIELDS,
    "gsrm.llm.judge.limit_field": LIMIT_FIELDS,
    "gsrm.server.log_level": ("DEBUG", "INFO", "WARNING", "ERROR"),
    "rollout.engine": ("embedded",),
    "demo.student_from": ("base", "teacher"),
    "demo.base.schedule": SCHEDULES,
    "demo.teacher.schedule": SCHEDULES,
    "demo.student.schedule": SCHEDULES,
}
# Fields of each section; null, where the schema allows it, is always in range.
AT_LEAST_ONE: dict[str, tuple[str, ...]] = {
    "exp_manager.checkpoint_callback_params": ("save_last", "save_top_k"),
    "trainer": ("num_nodes", "devices"),
    "trainer.rlkd": ("max_steps",),
    "trainer.sft": ("max_steps",),
    "model": (
        "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels",
        "encoder_seq_length", "max_position_embeddings", "make_vocab_size_divisible_by", "tensor_model_parallel_size",
        "pipeline_model_parallel_size", "micro_batch_size", "forward_micro_batch_size", "log_prob_chunk_tokens",
        "activations_checkpoint_num_layers", "micro_batch_tokens", "forward_micro_batch_tokens", "context_parallel_size",
        "fp8_amax_history_len", "virtual_pipeline_model_parallel_size",
    ),
    "model.rope_scaling": ("original_max_position_embeddings",),
    "model.optim": ("bucket_size",),
    "model.optim.sched": ("decay_steps",),
    "data": ("global_batch_size", "num_paths"),
    "rlkd": ("num_prompts", "group_size", "updates_per_batch", "epochs"),
    "rlkd.overlong": ("buffer_tokens",),
    "gsrm.llm": ("max_problem_chars", "max_text_chars", "max_tokens", "verdicts_in_memory"),
    "gsrm.llm.decomposer": ("max_concurrency", "attempts", "breaker_failures"),
    "gsrm.llm.judge": ("max_concurrency", "attempts", "breaker_failures"),
    "gsrm.server": ("max_connections", "concurrency", "items_per_request", "body_bytes", "text_chars", "retry_after_s"),
    "gsrm.prefill": ("num_problems", "concurrency"),
    "gsrm.label": ("num_problems", "concurrency", "text_pairs"),
    "gsrm.evaluation": ("concurrency",),
    "gsrm_demo": ("num_rows", "held_out_rows"),
    "gsrm.service": ("items_per_request", "concurrency", "attempts", "probes"),
    "rollout": ("batch_size", "max_new_tokens"),
    "validation": ("num_problems", "samples", "max_new_tokens"),
    "layout": ("signal_s",),
    "layout.trainer": ("cpus_per_task", "mem_gb", "port"),
    "layout.gsrm": ("cpus_per_task", "mem_gb"),
    "layout.gsrm.decomposer": ("tensor_parallel_size", "port", "max_model_len"),
    "layout.gsrm.judge": ("tensor_parallel_size", "port", "max_model_len"),
    "demo": ("test_problems", "test_samples"),
    "demo.base": ("steps", "num_paths"),
    "demo.teacher": ("steps", "num_paths"),
    "demo.student": ("steps", "num_paths"),
}  # fmt: skip
POSITIVE: dict[str, tuple[str, ...]] = {
    "trainer": ("watchdog_s", "heartbeat_s", "collective_timeout_s"),
    "model": ("rotary_base", "layernorm_epsilon", "init_method_std"),
    "model.rope_scaling": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "beta_fast",
        "beta_slow",
        "attention_factor",
    ),
    "model.optim": ("lr", "eps"),
    "gsrm.llm.decomposer": ("connect_timeout_s", "timeout_s", "breaker_cool_s"),
    "gsrm.llm.judge": ("connect_timeout_s", "timeout_s", "breaker_cool_s"),
    "gsrm.server": ("deadline_s", "drain_s"),
    "gsrm.prefill": ("per_s",),
    "gsrm.training": ("epochs",),
    "gsrm_demo": ("startup_s",),
    "gsrm.label": ("per_s",),
    "gsrm.service": ("deadline_s", "backoff_s", "startup_s"),
    "rollout": ("temperature",),
    "validation": ("temperature",),
    "demo.base": ("lr",),
    "demo.teacher": ("lr",),
    "demo.student": ("lr",),
}
NOT_NEGATIVE: dict[str, tuple[str, ...]] = {
    "gsrm.label": ("mixed",),
    "exp_manager": ("stop_margin_s",),
    "trainer.rlkd": ("val_check_interval", "save_interval", "gradient_clip_val"),
    "trainer.sft": ("save_interval", "gradient_clip_val"),
    "model": ("seed", "fp8_margin", "num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16"),
    "model.optim": ("weight_decay",),
    "model.optim.sched": ("warmup_steps", "min_lr"),
    "data": ("shuffle_seed",),
    "rlkd.dynamic_sampling": ("max_rounds",),
    "reward": ("outcome", "structure", "format", "tag"),
    "gsrm.llm": ("math_verify_s",),
    "gsrm.llm.decomposer": ("reasoning_tokens",),
    "gsrm.llm.judge": ("reasoning_tokens",),
    "gsrm.server": ("port", "queue_items", "cache_bytes", "startup_s"),
    "gsrm.service": ("pause_s", "probe_interval"),
    "layout.trainer": ("gpus_per_node",),
    "layout.gsrm": ("nodes", "gpus_per_node"),
    "layout.gsrm.decomposer": ("replicas",),
    "layout.gsrm.judge": ("replicas",),
    "gate": ("max_log_prob_gap", "max_log_prob_gap_fp8", "min_teacher_influence"),
    "demo": ("max_teacher_retrains", "retrain_within_s"),
}
SHARES: dict[str, tuple[str, ...]] = {
    "data": ("noise",),
    "rlkd": ("max_failed_fraction",),
    "gsrm.llm": ("eager_share",),
    "gsrm.training": ("held_out",),
    "model.optim.sched": ("warmup_ratio",),
    "gsrm.evaluation": ("held_out",),
    "gsrm_demo": ("altered", "cut", "min_parse_rate", "min_step_f1", "min_agreement"),
    "demo": ("min_teacher_accuracy",),
    "demo.base": ("noise",),
    "demo.teacher": ("noise",),
    "demo.student": ("noise",),
}


def problems(cfg: Config) -> Iterator[str]:
    """Every value outside its own range, as a sentence with its key."""
    for key, choices in CHOICES.items():
        value = _get(cfg, key)
        if value not in choices:
            yield f"{key}={value!r} is unknown; wanted one of {', '.join(choices)}{nearest(value, choices)}"
    for key, value in _floats(cfg):
        if not math.isfinite(value):
            yield f"{key}={value!r} is not finite"
    yield from _bound(cfg, AT_LEAST_ONE, lambda value: value >= 1, "a whole number >= 1")
    yield from _bound(cfg, POSITIVE, lambda value: value > 0, "a number > 0")
    yield from _bound(cfg, NOT_NEGATIVE, lambda value: value >= 0, "0 or more")
    yield from _bound(cfg, SHARES, lambda value: 0 <= value <= 1, "a number in [0, 1]")
    betas = cfg.model.optim.betas
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        yield f"model.optim.betas={betas} is out of range; wanted two numbers in [0, 1)"
    if cfg.exp_manager.max_time_per_run is not None:
        try:
            duration.seconds(cfg.exp_manager.max_time_per_run)
        except ValueError as err:
            yield f"exp_manager.max_time_per_run={err}"
    if cfg.exp_manager.audit_rollouts < -1:
        yield f"exp_manager.audit_rollouts={cfg.exp_manager.audit_rollouts} is out of range; wanted -1 (all) or more"


def _bound(
    cfg: Config, sections: dict[str, tuple[str, ...]], holds: Callable[[float], bool], wanted: str
) -> Iterator[str]:
    for section, fields in sections.items():
        for field in fields:
            value = _get(cfg, f"{section}.{field}")
            if value is not None and math.isfinite(value) and not holds(value):
                yield f"{section}.{field}={value!r} is out of range; wanted {wanted}"


def _get(cfg: Config, key: str) -> Any:
    node: Any = cfg
    for part in key.split("."):
        node = getattr(node, part)
    return node


def _floats(node: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            yield from _floats(value, f"{prefix}{field.name}.")
        elif isinstance(value, float):
            yield f"{prefix}{field.name}", value
