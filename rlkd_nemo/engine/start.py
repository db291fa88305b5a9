"""Start weights, a teacher's or the student's: from a checkpoint or straight from a Hugging Face directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlkd_nemo.config.schema import Model
from rlkd_nemo.engine.hugging_face.config import is_hugging_face, model_from_hugging_face
from rlkd_nemo.engine.hugging_face.load import load_hugging_face
from rlkd_nemo.engine.state.checkpoint import load_checkpoint
from rlkd_nemo.engine.state.meta import model_from_checkpoint


def model_from(path: str | Path, current: Model) -> Model:
    """`current` with the architecture of what lies at `path`. Raises InputError."""
    return (model_from_hugging_face if is_hugging_face(path) else model_from_checkpoint)(path, current)


def load_weights(path: str | Path, target: Any, *, tokenizer_pieces: Sequence[str]) -> None:
    """Fill an RLKDActor or a bare model of `build_model` with the weights at `path`; nothing else of it changes.

    Raises: InputError when they are missing, damaged or another model's, or their vocabulary is not `tokenizer_pieces`.
    """
    if is_hugging_face(path):
        load_hugging_face(path, target, tokenizer_pieces=tokenizer_pieces)
    else:
        load_checkpoint(path, target, weights_only=True, tokenizer_pieces=tokenizer_pieces)
