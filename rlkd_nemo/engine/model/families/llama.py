"""Llama 2, 3 and 3.x."""

from rlkd_nemo.engine.model.families import Family

FAMILY = Family(
    architecture="LlamaForCausalLM",
    model_type="llama",
    fixed={"add_qkv_bias": False, "qk_layernorm": False},
    written={"attention_bias": False, "mlp_bias": False},
)
