"""`meta.json` of a checkpoint: what a person, or a program without torch, wants to know before opening it."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkd_nemo import __version__
from rlkd_nemo.config.schema import Model, RopeScaling
from rlkd_nemo.engine.state.retention import META, TEMPORARY, checkpoints, is_named
from rlkd_nemo.errors import CheckpointError, DamagedCheckpointError

FORMAT_VERSION = 1
# Everything that decides what the weights mean. The context length is not among them: RoPE has no weights.
ARCHITECTURE = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "add_qkv_bias",
    "qk_layernorm",
    "rotary_base",
    "rope_scaling",
    "layernorm_epsilon",
    "share_embeddings_and_output_weights",
)
# Of these, what checkpoints of format 1 may lack: such a model has the default.
_ADDED = ("add_qkv_bias", "qk_layernorm", "rope_scaling")
_PACKAGES = ("torch", "megatron-core", "numpy")


def architecture_of(model: Model) -> dict[str, Any]:
    """The settings of `model` that a checkpoint must share, `kv_channels` resolved."""
    values = {name: getattr(model, name) for name in ARCHITECTURE}
    values["kv_channels"] = model.kv_channels or model.hidden_size // model.num_attention_heads
    values["rope_scaling"] = dataclasses.asdict(model.rope_scaling)
    return values


def with_architecture(current: Model, values: Mapping[str, Any]) -> Model:
    """`current` with `values` of `architecture_of`; settings that they lack, being older, get their defaults."""
    values = {**{name: getattr(Model(), name) for name in _ADDED}, **values}
    scaling = values["rope_scaling"]
    if not isinstance(scaling, RopeScaling):
        values["rope_scaling"] = RopeScaling(**scaling)
    return dataclasses.replace(current, **values)


def layout_of(model: Model, world_size: int) -> dict[str, int]:
    """Sizes of the axes the ranks are laid out in."""
    tensor, pipeline = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
    context = model.context_parallel_size
    layout = {"tensor": tensor, "pipeline": pipeline, "data": world_size // (tensor * pipeline * context)}
    # Older checkpoints do not name the context axis: it was 1.
    return layout if context == 1 else {**layout, "context": context}


def pieces_hash(pieces: Sequence[str]) -> str:
    """SHA-256 of the tokenizer's pieces in order: equal hash, equal ids."""
    return hashlib.sha256(json.dumps(list(pieces)).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of this package and of those that decide how a checkpoint is stored."""
    return {
        "rlkd_nemo": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def read_meta(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint's `meta.json`.

    Raises: CheckpointError when `path` is missing, unfinished, no checkpoint, or of a newer format,
        DamagedCheckpointError when it lost its meta; the message lists the checkpoints that are there instead.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint at {path}: {_there(path.parent)}")
    if path.name.endswith(TEMPORARY):
        raise CheckpointError(f"{path} is unfinished: its saving was interrupted; {_there(path.parent)}")
    file = path / META
    if not file.is_file():
        # A checkpoint's name is given to what has a meta already: this one lost it.
        kind = DamagedCheckpointError if is_named(path) else CheckpointError
        raise kind(f"{path} is not a checkpoint, it has no {META}; {_there(path)}")
    try:
        meta = json.loads(file.read_text())
        version = meta["format_version"]
    except (ValueError, KeyError, TypeError, OSError) as err:
        raise DamagedCheckpointError(
            f"{file} cannot be read ({type(err).__name__}: {err}); {_there(path.parent)}"
        ) from err
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {version}, wanted {FORMAT_VERSION}: it is of another version of rlkd_nemo"
        )
    return meta


def model_from_checkpoint(path: str | Path, current: Model) -> Model:
    """`current` with the architecture that the checkpoint was trained with; layout and batch sizes stay.

    Raises: CheckpointError as `read_meta`.
    """
    meta = read_meta(path)
    model = with_architecture(current, meta["architecture"])
    return dataclasses.replace(model, max_position_embeddings=meta.get("max_position_embeddings"))


def check_model(path: Path, meta: Mapping[str, Any], model: Model, vocab_size: int) -> None:
    """Raises CheckpointError naming every setting in which the checkpoint is another model than `model`."""
    wanted = {**architecture_of(model), "vocabulary": vocab_size}
    added = {name: value for name, value in architecture_of(Model()).items() if name in _ADDED}
    got = {**added, **meta["architecture"], "vocabulary": meta["vocabulary"]["size"]}
    wrong = [f"{name} {got[name]}, wanted {value}" for name, value in wanted.items() if got[name] != value]
    if wrong:
        raise CheckpointError(
            f"{path} holds another model: {'; '.join(wrong)}. Change model.* (or the task, for the vocabulary) to what "
            "the checkpoint has, or name another checkpoint"
        )


def check_pieces(path: Path, meta: Mapping[str, Any], pieces: Sequence[str]) -> None:
    """Raises CheckpointError when the checkpoint's tokens mean something else than `pieces`, though as many."""
    wanted, got = pieces_hash(pieces), meta["vocabulary"]["sha256"]
    if got != wanted:
        raise CheckpointError(
            f"{path} was trained with another vocabulary: {meta['vocabulary']['size']} pieces with hash {got[:12]}, "
            f"wanted {len(pieces)} with hash {wanted[:12]}; use its tokenizer (model.tokenizer, task) or another checkpoint"
        )


def _there(directory: Path) -> str:
    """What a user might have meant instead."""
    if not directory.is_dir():
        return f"{directory} does not exist"
    found = [path.name for path in checkpoints(directory)]
    if found:
        return f"checkpoints in {directory}: {', '.join(found)}"
    names = sorted(path.name for path in directory.iterdir())
    return f"{directory} holds {', '.join(names[:8]) or 'nothing'}{', ...' if len(names) > 8 else ''}"
