"""Is this `.nemo` file the model that the run is about? Asked before weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlkd_nemo.errors import CheckpointError

# What shapes and means the weights.
ARCHITECTURE = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels",
    "normalization", "activation", "bias", "position_embedding_type", "rotary_percentage", "rotary_base",
    "share_embeddings_and_output_weights", "num_moe_experts",
)  # fmt: skip


def architecture_problems(path: str, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Why the checkpoint with config `saved` cannot be the model of section `asked`; empty when it can."""
    found = []
    target = str(saved.get("target", ""))
    if target and not any(kind in target.lower() for kind in ("gpt", "llama")):
        found.append(f"{path} holds a {target}; wanted a GPT model of NeMo")
    if not saved.get("mcore_gpt", False):
        found.append(f"{path} has mcore_gpt=False; convert it to Megatron-Core with NeMo's own script first")
    for key in ARCHITECTURE:
        if key in asked and key in saved and asked[key] != saved[key]:
            found.append(f"model.{key}={asked[key]!r}, but {path} has {saved[key]!r}; leave the key to the checkpoint")
    return found


def load_model_config(path: str | None, model_cfg: Any) -> Any:
    """NeMo-Aligner's `load_and_override_model_config` behind these checks.

    Raises: CheckpointError for a path without a checkpoint or one of another architecture.
    """
    from nemo_aligner.utils.utils import load_and_override_model_config, load_checkpoint_model_config

    if not path or not Path(path).exists():
        raise CheckpointError(
            f"restore_from_path={path}: there is no such file or directory; wanted a .nemo checkpoint"
        )
    try:
        saved = load_checkpoint_model_config(path)
    except Exception as error:  # a tar archive or YAML of any kind
        raise CheckpointError(f"{path} is no .nemo checkpoint that NeMo can read: {error}") from error
    if saved is not None:  # a NeMo 2.0 directory keeps its config elsewhere; NeMo-Aligner reads it itself
        problems = architecture_problems(path, saved, model_cfg)
        if problems:
            raise CheckpointError("\n".join(problems))
    return load_and_override_model_config(path, model_cfg)
