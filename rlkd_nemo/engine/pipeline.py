"""One pass of micro-batches through Megatron's pipeline schedules, forward only or with gradients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from rlkd_nemo.engine.ranks import Ranks

import torch
from megatron.core import tensor_parallel
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.transformer_config import TransformerConfig

from rlkd_nemo.config.precision import fp8_multiple
from rlkd_nemo.config.schema import Model
from rlkd_nemo.engine.model.attention import FusedAttention, packed_segments
from rlkd_nemo.engine.model.chunks import chunks_of
from rlkd_nemo.engine.token_log_probs import token_log_probs
from rlkd_nemo.lifecycle.watchdog import mark
from rlkd_nemo.training.batch import MicroBatch, SequenceBatch, collate
from rlkd_nemo.training.partition import MicroBatchSize, plan

# (log_probs [tokens], entropies [tokens], micro-batch) -> (loss to differentiate, anything to keep)
TokenFunction = Callable[[torch.Tensor, torch.Tensor, MicroBatch], tuple[torch.Tensor, object]]


def prepare_micro_batches(
    batch: SequenceBatch,
    settings: Model,
    config: TransformerConfig,
    ranks: Ranks,
    pad_id: int,
    *,
    forward_only: bool,
) -> tuple[list[MicroBatch], list[list[int]]]:
    """This rank's micro-batches, and for each data-parallel rank the rows of all of its own in order.

    Args: settings: the sizes; `config`: how the model they are for is cut.
    Raises: ConfigError on a row that is over the token budget, on every rank alike.
    """
    size = _micro_batch_size(settings, config, forward_only)
    parts = plan(batch.lengths(), size, ranks.dp_size)
    micro = [
        collate(batch, rows, pad_id, size, cp_rank=ranks.cp_rank, cp_size=ranks.cp_size)
        for rows in parts[ranks.dp_rank]
    ]
    return micro, [[row for rows in of_rank for row in rows] for of_rank in parts]


def _micro_batch_size(settings: Model, config: TransformerConfig, forward_only: bool) -> MicroBatchSize:
    prefix = "forward_" if forward_only else ""
    tokens, context = getattr(settings, f"{prefix}micro_batch_tokens"), config.context_parallel_size
    chunks = 2 * context if context > 1 else 1  # that each row is cut into
    # Sequence parallelism cuts what a context-parallel rank holds once more.
    shares = context * (config.tensor_model_parallel_size if config.sequence_parallel else 1)
    return MicroBatchSize(
        sequences=getattr(settings, f"{prefix}micro_batch_size"),
        tokens=None if tokens is None else tokens * context,
        packed=settings.packed_sequences,
        multiple=chunks,
        # FP8 wants whole blocks on each rank.
        total_multiple=math.lcm(chunks, shares * fp8_multiple(settings)),
        key=f"model.{prefix}micro_batch_tokens" + (" x model.context_parallel_size" if context > 1 else ""),
    )


def run_micro_batches(
    model: torch.nn.Module,
    hidden_model: torch.nn.Module,
    batches: Sequence[MicroBatch],
    function: TokenFunction,
    *,
    ranks: Ranks,
    vocab_size: int,
    temperature: float,
    chunk: int,
    forward_only: bool,
) -> list[object]:
    """Apply `function` to the selected-token log-probs of each micro-batch.

    Args:
        model: as it is called (wrapped for precision and data parallelism); `hidden_model` is what it wraps.
        forward_only: no gradients are made or left.
    Returns: what `function` kept, one per micro-batch in order, on the last pipeline stage; an empty list elsewhere.
    """
    kept: list[object] = []
    chunks = chunks_of(model)
    # A virtual pipeline takes as many micro-batches as it has stages at a time: idle ones fill up.
    idle = -len(batches) % ranks.pp_size if len(chunks) > 1 else 0
    shortest = min(batches, key=lambda batch: batch.tokens.numel())
    work = [(batch, False) for batch in batches] + [(shortest, True)] * idle
    begun = itertools.count(1)
    # Rotary positions read the bounds of packed rows; on the host that stops no GPU. Other kernels want them there.
    fused = any(isinstance(part, FusedAttention) for part in hidden_model.modules())
    bounds = torch.device("cpu") if fused else ranks.device

    def forward_step(iterator, chunk_of_model):
        mark(f"micro-batch {next(begun)} of {len(work) * len(chunks)}")
        batch, is_idle = next(iterator)
        batch = batch.to(ranks.device)
        packing = None if batch.segments is None else packed_segments(batch.segments, bounds)
        hidden = chunk_of_model(batch.tokens, _positions(batch.tokens), None, packed_seq_params=packing)

        def nothing(output: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            """What has no gradient of its own still has to send one up the pipeline."""
            return 0.0 * output.float().sum() + 0.0 * weight.float().sum()

        def loss(output: torch.Tensor):
            sequence_parallel = hidden_model.config.sequence_parallel
            if sequence_parallel:
                output = tensor_parallel.gather_from_sequence_parallel_region(output)
            flat = output.transpose(0, 1).reshape(-1, output.shape[-1])
            weight = hidden_model.output_weight()
            no_tokens = torch.zeros([], dtype=torch.int, device=output.device)
            if is_idle:
                return nothing(output, weight), no_tokens, {}
            log_probs, entropies = token_log_probs(
                flat[batch.positions].to(weight.dtype),  # the precision wrapper hands out fp32
                weight,
                batch.targets,
                vocab_size=vocab_size,
                temperature=temperature,
                group=ranks.tp_group if ranks.tp_size > 1 else None,
                chunk=chunk,
                reduce_grad=not sequence_parallel,
            )
            value, result = function(log_probs, entropies, batch)
            kept.append(result)
            if not value.requires_grad and not forward_only:
                value = value + nothing(output, weight)
            # The second value is a token count for Megatron to divide by; the weights have done that already.
            return value, no_tokens, {}

        return hidden, loss

    get_forward_backward_func(ranks.pp_size, len(chunks) if len(chunks) > 1 else None)(
        forward_step_func=forward_step,
        data_iterator=[iter(work) for _ in chunks],
        model=chunks,
        num_microbatches=len(work),
        seq_length=max(batch.tokens.shape[1] for batch in batches),
        micro_batch_size=batches[0].tokens.shape[0],
        forward_only=forward_only,
    )
    return kept


def _positions(tokens: torch.Tensor) -> torch.Tensor:
    return torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)


def spread(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[tokens] in row order to [batch, tokens] under `mask`, zero elsewhere; differentiable."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
