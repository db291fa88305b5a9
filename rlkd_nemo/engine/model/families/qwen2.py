"""Qwen2 and Qwen2.5: a bias on query, key and value."""

from rlkd_nemo.engine.model.families import Family

FAMILY = Family(
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    fixed={"add_qkv_bias": True, "qk_layernorm": False},
    defaults={"num_key_value_heads": 32},
    written={"use_sliding_window": False},
)
