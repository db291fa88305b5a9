"""Mistral; its sliding window only where the context is no longer than it."""

from rlkd_nemo.engine.model.families import Family

FAMILY = Family(
    architecture="MistralForCausalLM",
    model_type="mistral",
    fixed={"add_qkv_bias": False, "qk_layernorm": False},
    # Its sliding window is on where nothing is said.
    defaults={"num_key_value_heads": 8, "sliding_window": 4096, "use_sliding_window": True},
    written={"sliding_window": None},
)
