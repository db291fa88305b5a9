"""A model's weights for a checkpoint, the same whichever implementation of its layers wrote or reads them.

Megatron stores the layers of both under Transformer Engine's names. What differs are the `_extra_state` entries that
Transformer Engine adds to every layer: the scales of the delayed FP8 recipe, and otherwise nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

_EXTRA = "_extra_state"


def scales_are_state(config: TransformerConfig) -> bool:
    """True when FP8 scales come from past steps, so that an exact resume needs them."""
    return config.fp8 is not None and config.fp8_recipe == "delayed"


def model_state(hidden_model: Any, *, training: bool) -> dict[str, Any]:
    """The sharded state of a HiddenGPTModel. FP8 scales are part of a training state only: other weights have others."""
    state = hidden_model.sharded_state_dict()
    if training and scales_are_state(hidden_model.config):
        return state
    return {name: value for name, value in state.items() if not name.endswith(_EXTRA)}


def fill(hidden_model: torch.nn.Module, state: dict[str, Any]) -> None:
    """Load weights; an `_extra_state` that `state` lacks stays as it is. Raises RuntimeError on any other difference."""
    missing, unexpected = hidden_model.load_state_dict(state, strict=False)
    wrong = [name for name in [*missing, *unexpected] if not name.endswith(_EXTRA)]
    if wrong:
        raise RuntimeError(f"weights that only one of model and checkpoint has: {', '.join(wrong)}")
