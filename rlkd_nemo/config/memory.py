"""What must hold between the settings that spare memory: sequence parallelism, recomputation, optimizer states.

Needs no torch, as `rules.py`, which asks it.
"""

from __future__ import annotations

from collections.abc import Iterator

from rlkd_nemo.config.schema import Config


def problems(cfg: Config) -> Iterator[str]:
    """Every broken rule of this file as one sentence."""
    yield from _sequence_parallel(cfg)


def _sequence_parallel(cfg: Config) -> Iterator[str]:
    model = cfg.model
    if model.sequence_parallel and model.tensor_model_parallel_size == 1:
        yield (
            "model.sequence_parallel=true cuts activations over tensor-parallel ranks, found "
            "model.tensor_model_parallel_size=1; raise it, or set sequence_parallel=false"
        )
