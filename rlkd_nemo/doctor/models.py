"""Hugging Face directories of student and teacher: do they fit the config, and one another?

Read with `json` alone. What only the weights themselves can tell is found when they are loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlkd_nemo.config.objectives import needs_teacher
from rlkd_nemo.config.schema import Config
from rlkd_nemo.doctor.finding import Finding, note

# Kept equal to the families of the engine, which imports torch, by a test.
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_SIZES = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_query_groups",
    "rms_norm_eps": "layernorm_epsilon",
}
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


def findings(cfg: Config) -> Iterator[Finding]:
    """What does not fit in the directories that are there; those that are not are `places.inputs`' business."""
    student = _directory(cfg.model.restore_from_path)
    teacher = _directory(cfg.teacher.restore_from_path) if needs_teacher(cfg.objective) else None
    for key, directory in (("model.restore_from_path", student), ("teacher.restore_from_path", teacher)):
        if directory is not None:
            yield from _weights(key, directory)
            yield from _context(cfg, key, directory)
            yield from _layout(cfg, key, directory)
    if student is not None:
        yield from _sizes(cfg, student)
    yield from _vocabularies(cfg, student, teacher)
    yield from _template(cfg)


def vocabulary_rows(path: str | None) -> int:
    """`vocab_size` of the directory's config.json; 0 where it cannot be known."""
    directory = _directory(path)
    size = _config(directory).get("vocab_size") if directory is not None else None
    return size if isinstance(size, int) else 0


def _directory(path: str | None) -> Path | None:
    """The path if it is a Hugging Face directory; checkpoints of our own say what they are when they are loaded."""
    return Path(path) if path and (Path(path) / "config.json").is_file() else None


def _config(directory: Path) -> dict[str, Any]:
    value = _json(directory / "config.json")
    return value if isinstance(value, dict) else {}


def _json(file: Path) -> Any:
    """The contents; None where they cannot be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _weights(key: str, directory: Path) -> Iterator[Finding]:
    config = _config(directory)
    if not config:
        yield Finding(
            f"{directory / 'config.json'} ({key}) cannot be read; wanted a JSON object; fetch the model again"
        )
        return
    named = config.get("architectures") or []
    if not isinstance(named, list) or len(named) != 1 or named[0] not in ARCHITECTURES:
        yield Finding(
            f"{key}={directory}: architectures={named} is not supported; wanted one of {', '.join(ARCHITECTURES)}"
        )
    index = _json(directory / _INDEX)
    if index is None:
        if not (directory / _SINGLE).is_file():
            yield Finding(f"{key}={directory} has neither {_INDEX} nor {_SINGLE}; wanted weights in safetensors")
        return
    listed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(listed, dict):
        yield Finding(f"{directory / _INDEX} ({key}) has no weight_map; fetch the model again")
        return
    missing = sorted({str(shard) for shard in listed.values() if not (directory / str(shard)).is_file()})
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        yield Finding(
            f"{key}={directory} lacks {', '.join(missing[:3])}{more}, which {_INDEX} names; the download is not whole: fetch "
            "it again"
        )


def _context(cfg: Config, key: str, directory: Path) -> Iterator[Finding]:
    longest = _config(directory).get("max_position_embeddings")
    if isinstance(longest, int) and longest < cfg.model.encoder_seq_length:
        yield Finding(
            f"{key}={directory} was made for {longest} tokens (max_position_embeddings), but model.encoder_seq_length="
            f"{cfg.model.encoder_seq_length}; lower that, or choose a model of a longer context"
        )


def _layout(cfg: Config, key: str, directory: Path) -> Iterator[Finding]:
    """The frozen models live in the student's layout, so that their sizes must divide by it too."""
    if key == "model.restore_from_path":
        return  # checked on model.*, which is compared with the directory
    config, model = _config(directory), cfg.model
    tensor, pipeline = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "hidden_size"):
        value = config.get(name)
        if isinstance(value, int) and tensor > 0 and value % tensor:
            yield Finding(
                f"{key}={directory} has {name}={value}, which does not divide by model.tensor_model_parallel_size={tensor}; "
                "the teacher is cut like the student: change that size, or the teacher"
            )
    layers = config.get("num_hidden_layers")
    if isinstance(layers, int) and pipeline > 0 and layers % pipeline:
        yield Finding(
            f"{key}={directory} has {layers} layers, which do not divide by model.pipeline_model_parallel_size={pipeline}; "
            "change that size, or the teacher"
        )


def _sizes(cfg: Config, directory: Path) -> Iterator[Finding]:
    config = _config(directory)
    if not config:
        return
    rope = config.get("rope_parameters")
    found = {**config, "num_key_value_heads": config.get("num_key_value_heads") or config.get("num_attention_heads")}
    wrong = [
        f"model.{ours}={getattr(cfg.model, ours)} ({theirs}: {found[theirs]})"
        for theirs, ours in _SIZES.items()
        if isinstance(found.get(theirs), (int, float)) and found[theirs] != getattr(cfg.model, ours)
    ]
    base = (rope.get("rope_theta") if isinstance(rope, dict) else None) or config.get("rope_theta")
    if base is not None and base != cfg.model.rotary_base:
        wrong.append(f"model.rotary_base={cfg.model.rotary_base} (rope_theta: {base})")
    tied = bool(config.get("tie_word_embeddings", False))
    if tied != cfg.model.share_embeddings_and_output_weights:
        wrong.append(f"model.share_embeddings_and_output_weights={not tied} (tie_word_embeddings: {tied})")
    if wrong:
        yield Finding(
            f"model.* is another model than model.restore_from_path={directory}: {'; '.join(wrong)}; choose the model= that "
            "belongs to it"
        )


def _vocabularies(cfg: Config, student: Path | None, teacher: Path | None) -> Iterator[Finding]:
    """Ids must mean the same text to student, teacher and the tokenizer that prompts go through."""
    if cfg.model.tokenizer.library != "huggingface" or not cfg.model.tokenizer.type:
        return
    own = Path(cfg.model.tokenizer.type)
    if not own.is_dir():
        return
    file = own / "tokenizer.json"
    if not file.is_file():
        yield Finding(
            f"model.tokenizer.type={own} has no tokenizer.json; wanted a directory that a fast tokenizer was saved in"
        )
        return
    pieces = _pieces(file)
    if not pieces:
        yield Finding(f"{file} (model.tokenizer.type) is no tokenizer that can be read; fetch it again")
        return
    ending = _ending(own)
    if ending is None:
        yield Finding(
            f"model.tokenizer.type={own}: tokenizer_config.json names no eos_token; wanted the end-of-text token there"
        )
    for key, directory in (("model.restore_from_path", student), ("teacher.restore_from_path", teacher)):
        if directory is None:
            continue
        other = directory / "tokenizer.json"
        if other.is_file() and directory.resolve() != own.resolve() and _digest(other) != _digest(file):
            yield from _different(key, directory, own, pieces, _pieces(other))
        rows = vocabulary_rows(str(directory))
        if rows and rows <= max(pieces):
            yield Finding(
                f"{key}={directory} has vocab_size={rows} rows, but model.tokenizer.type={own} has ids up to {max(pieces)}; "
                "wanted one vocabulary: choose a model of the same family"
            )
    if teacher is not None and ending is not None:
        end = _ending(teacher)
        if end is not None and end != ending:
            yield note(
                f"the student ends a text with {ending!r}, the teacher with {end!r}: the teacher's term is left out at the "
                "student's end of text"
            )


def _different(key: str, directory: Path, own: Path, mine: dict[int, str], theirs: dict[int, str]) -> Iterator[Finding]:
    for index in sorted(mine.keys() | theirs.keys()):
        if mine.get(index) != theirs.get(index):
            yield Finding(
                f"{key}={directory}: token id {index} is {theirs.get(index)!r} there and {mine.get(index)!r} to "
                f"model.tokenizer.type={own}; wanted one vocabulary: choose a model of the same family"
            )
            return


def _pieces(file: Path) -> dict[int, str]:
    """Token of each id, from the file's own vocabulary and its added tokens; empty where it cannot be read."""
    content = _json(file)
    try:
        vocabulary = content["model"]["vocab"]
        if isinstance(vocabulary, list):  # unigram models: [piece, score]
            found = {index: entry[0] for index, entry in enumerate(vocabulary)}
        else:
            found = {index: piece for piece, index in vocabulary.items()}
        found |= {added["id"]: added["content"] for added in content.get("added_tokens") or []}
        return found if all(isinstance(index, int) for index in found) else {}
    except (TypeError, KeyError, AttributeError, IndexError):
        return {}


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _ending(directory: Path) -> str | None:
    config = _json(directory / "tokenizer_config.json")
    value = config.get("eos_token") if isinstance(config, dict) else None
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _template(cfg: Config) -> Iterator[Finding]:
    """A task that speaks through a chat template wants one in the directory that it names."""
    named = getattr(cfg.task, "chat_template", None)
    if not named or not Path(named).is_dir():
        return
    config = _json(Path(named) / "tokenizer_config.json")
    inside = config.get("chat_template") if isinstance(config, dict) else None
    if not inside and not (Path(named) / "chat_template.jinja").is_file():
        yield Finding(
            f"task.chat_template={named} has no chat template, neither in tokenizer_config.json nor as chat_template.jinja; "
            "name a directory that has one (a chat model's), or null for plain text"
        )
