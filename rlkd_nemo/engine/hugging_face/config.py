"""`config.json` to the settings of a model and back."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlkd_nemo.config.schema import Model, RopeScaling
from rlkd_nemo.engine.model.families import Family, families
from rlkd_nemo.errors import InputError

log = logging.getLogger(__name__)

CONFIG = "config.json"
_SIZES = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
}
# Keys whose one value the engine has; absent means that value.
_ONLY = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_YARN = ("factor", "beta_fast", "beta_slow", "attention_factor", "truncate", "original_max_position_embeddings")


def is_hugging_face(path: str | Path) -> bool:
    """Is it a directory with a `config.json`?"""
    return (Path(path) / CONFIG).is_file()


def model_from_hugging_face(directory: str | Path, current: Model) -> Model:
    """`current` with the architecture that `config.json` describes; layout, batch and context sizes stay.

    Raises: InputError when the file is missing or unreadable, its architecture is unknown (the known ones are listed),
        or it asks for something that the engine does not have.
    """
    file = Path(directory) / CONFIG
    config = read_config(directory)
    architectures = config.get("architectures") or [None]
    known = {family.architecture: family for family in families().values()}
    if len(architectures) != 1 or architectures[0] not in known:
        raise InputError(f"{file}: architectures={architectures} is not supported; wanted one of {', '.join(known)}")
    family = known[architectures[0]]
    config = {**family.defaults, **config}
    needed = [*_SIZES.values(), "vocab_size", "rms_norm_eps"]
    missing = [key for key in needed if not isinstance(config.get(key), (int, float))]
    if missing:
        raise InputError(f"{file} has no number for {', '.join(missing)}; wanted the config of a {architectures[0]}")
    for key, only in _ONLY.items():
        if config.get(key, only) != only:
            raise InputError(f"{file}: {key}={config[key]!r} is not supported; wanted {only!r}")
    _check_window(file, config, current)
    values = {name: config[key] for name, key in _SIZES.items()}
    heads = values["num_attention_heads"]
    return dataclasses.replace(
        current,
        **values,
        **family.fixed,
        num_query_groups=config.get("num_key_value_heads") or heads,
        kv_channels=config.get("head_dim") or values["hidden_size"] // heads,
        layernorm_epsilon=float(config["rms_norm_eps"]),
        share_embeddings_and_output_weights=bool(config.get("tie_word_embeddings", False)),
        max_position_embeddings=config.get("max_position_embeddings"),
        **_rope(file, config),
    )


def read_config(directory: str | Path) -> dict[str, Any]:
    """The contents of `config.json`. Raises InputError."""
    file = Path(directory) / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise InputError(f"{file} cannot be read ({err}); wanted a directory that save_pretrained wrote") from err
    if not isinstance(config, dict):
        raise InputError(f"{file} holds {type(config).__name__}, wanted an object")
    return config


def to_config(model: Model, vocab_size: int, family: Family, dtype: str) -> dict[str, Any]:
    """`config.json` of `model` as a member of `family`.

    The rotary base stands beside `rope_scaling`, which transformers 4 and 5 and vLLM all read.
    """
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": vocab_size,
        **{key: getattr(model, name) for name, key in _SIZES.items()},
        "num_key_value_heads": model.num_query_groups,
        "head_dim": model.kv_channels or model.hidden_size // model.num_attention_heads,
        "hidden_act": "silu",
        "rms_norm_eps": model.layernorm_epsilon,
        "tie_word_embeddings": model.share_embeddings_and_output_weights,
        "max_position_embeddings": model.max_position_embeddings or model.encoder_seq_length,
        "rope_theta": model.rotary_base,
        "rope_scaling": _written_rope(model.rope_scaling),
        "attention_dropout": 0.0,
        "initializer_range": model.init_method_std,
        "torch_dtype": dtype,
        "use_cache": True,
        **family.written,
    }


def _check_window(file: Path, config: Mapping[str, Any], current: Model) -> None:
    window = config.get("sliding_window") if config.get("use_sliding_window", False) else None
    if window is not None and window < current.encoder_seq_length:
        raise InputError(
            f"{file}: sliding_window={window} is shorter than model.encoder_seq_length={current.encoder_seq_length}, and "
            "attention here is over the whole context; lower model.encoder_seq_length to at most the window"
        )


def _rope(file: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """`rotary_base` and `rope_scaling`, from where transformers 4 (two keys) or 5 (`rope_parameters`) keeps them."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    base = given.get("rope_theta") or config.get("rope_theta") or 10000.0
    kind = given.get("rope_type") or given.get("type") or "default"
    if given.get("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(f"{file}: partial_rotary_factor={given['partial_rotary_factor']} is not supported; wanted 1")
    if kind == "default":
        return {"rotary_base": float(base), "rope_scaling": RopeScaling()}
    read = {"llama3": _LLAMA3, "yarn": _YARN}.get(kind)
    if read is None:
        raise InputError(f"{file}: rope_type={kind!r} is not supported; wanted default, llama3 or yarn")
    values = {key: given[key] for key in read if given.get(key) is not None}
    old, new = values.get("original_max_position_embeddings"), config.get("max_position_embeddings")
    if old is None and new is not None:
        values["original_max_position_embeddings"] = new
    if "factor" not in values:
        raise InputError(f"{file}: rope_type={kind} has no factor")
    factor, whole, all_dim = values["factor"], given.get("mscale"), given.get("mscale_all_dim")
    if kind == "yarn" and whole and all_dim and "attention_factor" not in values and factor > 1:
        size = math.log(factor) / 10.0
        values["attention_factor"] = (whole * size + 1.0) / (all_dim * size + 1.0)
    return {"rotary_base": float(base), "rope_scaling": RopeScaling(type=kind, **values)}


def _written_rope(scaling: RopeScaling) -> dict[str, Any] | None:
    if scaling.type == "none":
        return None
    read = _LLAMA3 if scaling.type == "llama3" else _YARN
    values = {key: getattr(scaling, key) for key in read}
    return {"rope_type": scaling.type, **{key: value for key, value in values.items() if value is not None}}
