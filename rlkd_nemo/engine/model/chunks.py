"""A virtual pipeline: one rank's several pieces of the model, which stand where otherwise one model does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch


class Chunks(torch.nn.ModuleList):
    """Pieces of one rank in order of depth, as they are called: bare, or wrapped for precision and data parallelism.

    Between two of them lie the pieces of the other stages.
    """

    @property
    def config(self) -> Any:
        """The TransformerConfig that all share."""
        return self[0].config

    def zero_grad_buffer(self) -> None:
        """Clear the gradients of all (wrapped) pieces."""
        for chunk in self:
            chunk.zero_grad_buffer()


class HiddenChunks(Chunks):
    """The HiddenGPTModels inside; has what the rest of the engine asks one of them."""

    @property
    def share_embeddings_and_output_weights(self) -> bool:
        """True when the output matrix is the embedding."""
        return self[0].share_embeddings_and_output_weights

    @property
    def rotary_pos_emb(self) -> torch.nn.Module:
        """The first piece's; all have the same."""
        return self[0].rotary_pos_emb

    @property
    def attention_factor(self) -> float:
        """Of the rotary positions."""
        return self[0].attention_factor

    def output_weight(self) -> torch.Tensor:
        """As HiddenGPTModel's, of the last piece; last stage only."""
        return self[-1].output_weight()

    def settle(self) -> None:
        """As HiddenGPTModel's."""
        for chunk in self:
            chunk.settle()

    def named_in_whole(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """As HiddenGPTModel's."""
        for chunk in self:
            yield from chunk.named_in_whole()

    def sharded_state_dict(self) -> dict[str, Any]:
        """Under the names of `state_dict`; what is stored goes by the layers' numbers in the whole model."""
        return {
            f"{place}.{name}": entry
            for place, chunk in enumerate(self)
            for name, entry in chunk.sharded_state_dict().items()
        }


def chunks_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The pieces of a model that has some, else the model alone."""
    return list(model) if isinstance(model, Chunks) else [model]
