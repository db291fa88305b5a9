"""Rules for how rows become micro-batches: token budgets and context parallelism against the context. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rlkd_nemo.config.precision import fp8_multiple
from rlkd_nemo.config.schema import Config


def problems(cfg: Config) -> Iterator[str]:
    """Every broken rule as one sentence."""
    model, context = cfg.model, cfg.model.context_parallel_size
    if min(context, model.encoder_seq_length) < 1:
        return  # named by its range
    if context > 1 and model.encoder_seq_length % (2 * context):
        yield (
            f"model.encoder_seq_length={model.encoder_seq_length} does not divide by 2 x model.context_parallel_size="
            f"{2 * context}, the chunks that each row is cut into; wanted a multiple of {2 * context}"
        )
    chunks = 2 * context if context > 1 else 1
    cut = context * (model.tensor_model_parallel_size if model.sequence_parallel else 1)
    multiple = math.lcm(chunks, max(1, cut) * fp8_multiple(model))  # tokens of a micro-batch are rounded up to this
    longest = -(-model.encoder_seq_length // multiple) * multiple
    for key in ("micro_batch_tokens", "forward_micro_batch_tokens"):
        budget = getattr(model, key)
        if budget is not None and budget >= 1 and budget * context < longest:
            ranks = f" on each of {context} context-parallel ranks" if context > 1 else ""
            yield (
                f"model.{key}={budget}{ranks} has no room for one row of model.encoder_seq_length="
                f"{model.encoder_seq_length} tokens; wanted at least {longest // context}, "
                f"or null to count sequences"
            )
