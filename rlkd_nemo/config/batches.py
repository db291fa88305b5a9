"""Rules for how rows become micro-batches: token budgets against the context. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from rlkd_nemo.config.schema import Config


def problems(cfg: Config) -> Iterator[str]:
    """Every broken rule as one sentence."""
    yield from _budgets(cfg)


def _budgets(cfg: Config) -> Iterator[str]:
    model = cfg.model
    for key in ("micro_batch_tokens", "forward_micro_batch_tokens"):
        budget = getattr(model, key)
        if budget is not None and 1 <= budget < model.encoder_seq_length:
            yield (
                f"model.{key}={budget} has no room for one row of model.encoder_seq_length={model.encoder_seq_length} "
                f"tokens; wanted at least that many, or null to count sequences"
            )
