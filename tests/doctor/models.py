"""Small directories in the form of Hugging Face's: config, tokenizer and an index of weights, without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 4,
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": 64,
    "tie_word_embeddings": False,
}
PIECES = [f"piece{i}" for i in range(60)]


def write(
    directory: Path,
    *,
    pieces: list[str] = PIECES,
    eos: str = "<eos>",
    template: str | None = "{{ messages }}",
    shards: bool = True,
    **config: Any,
) -> Path:
    """One directory; `pieces` are followed by the end-of-text token."""  # fmt: skip
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({**CONFIG, **config}))
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    added = [{"id": len(pieces), "content": eos, "special": True}]
    (directory / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": added}))
    told = {"eos_token": eos} | ({"chat_template": template} if template else {})
    (directory / "tokenizer_config.json").write_text(json.dumps(told))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    if shards:
        (directory / "model-1.safetensors").write_text("")
    return directory
