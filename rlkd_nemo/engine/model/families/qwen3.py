"""Qwen3 (dense): query and key of each head normalised."""

from rlkd_nemo.engine.model.families import Family

FAMILY = Family(
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    fixed={"add_qkv_bias": False, "qk_layernorm": True},
    defaults={"num_key_value_heads": 32, "head_dim": 128},
    written={"use_sliding_window": False, "attention_bias": False},
)
