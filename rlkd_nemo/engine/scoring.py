"""Forward-only log-probs of whole batches: old policy, reference and teacher."""

from __future__ import annotations

from collections.abc import Sequence

from rlkd_nemo.engine.ranks import Ranks

import torch
import torch.distributed as dist

from rlkd_nemo.engine.pipeline import prepare_micro_batches, run_micro_batches
from rlkd_nemo.training.batch import MicroBatch, SequenceBatch


@torch.no_grad()
def sequence_log_probs(
    model: torch.nn.Module,
    ranks: Ranks,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    temperature: float,
    pad_id: int,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Log-probs and entropies of every response token under `model`.

    Every rank passes the same sequences and gets all results; data-parallel ranks share the work.

    Args:
        model: from `build_model`, unwrapped or wrapped; its settings give the micro-batch and chunk sizes.
        temperature: divides the logits.
    Returns: two lists of float32 [len(response)] on the host, in the order given.
    """
    inner = model.module if hasattr(model, "ddp_config") else model
    settings = inner.settings
    batch = SequenceBatch([list(p) for p in prompts], [list(r) for r in responses])
    config = inner.hidden_model.config
    micro, rows = prepare_micro_batches(batch, settings, config, ranks, pad_id, forward_only=True)
    was_training = model.training
    model.eval()
    kept = run_micro_batches(
        inner,
        inner.hidden_model,
        micro,
        _in_place,
        ranks=ranks,
        vocab_size=inner.vocab_size,
        temperature=temperature,
        chunk=settings.log_prob_chunk_tokens,
        forward_only=True,
    )
    model.train(was_training)

    # One float per token travels: context-parallel ranks join theirs, last stage -> other stages, then all data-parallel
    # ranks exchange their shares.
    total = sum(len(batch.responses[row]) for row in rows[ranks.dp_rank])
    mine = torch.cat(kept, dim=1) if ranks.is_last_stage else torch.empty(2, total, device=ranks.device)
    if ranks.cp_size > 1 and ranks.is_last_stage:
        dist.all_reduce(mine, group=ranks.cp_group)
    if ranks.pp_size > 1:
        mine = mine.contiguous()
        dist.broadcast(mine, dist.get_global_rank(ranks.pp_group, ranks.pp_size - 1), group=ranks.pp_group)
    log_probs: list[torch.Tensor] = [torch.empty(0)] * len(batch)
    entropies: list[torch.Tensor] = [torch.empty(0)] * len(batch)
    for of_rank, values in zip(rows, _exchange(mine, rows, batch, ranks)):
        pieces = torch.split(values, [len(batch.responses[row]) for row in of_rank], dim=1)
        for row, piece in zip(of_rank, pieces):
            log_probs[row], entropies[row] = piece[0].cpu(), piece[1].cpu()
    return log_probs, entropies


def _in_place(log_probs: torch.Tensor, entropies: torch.Tensor, mb: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """[2, response tokens of the micro-batch], 0 for those of other context-parallel ranks."""
    values = torch.zeros(2, mb.held.shape[0], device=log_probs.device)
    values[:, mb.held] = torch.stack([log_probs, entropies])
    return log_probs.sum(), values


def _exchange(mine: torch.Tensor, rows: list[list[int]], batch: SequenceBatch, ranks: Ranks) -> list[torch.Tensor]:
    """All data-parallel ranks' [2, tokens], padded to the longest for one all-gather."""
    if ranks.dp_size == 1:
        return [mine]
    totals = [sum(len(batch.responses[row]) for row in of_rank) for of_rank in rows]
    padded = torch.zeros(2, max(totals), device=ranks.device)
    padded[:, : mine.shape[1]] = mine
    gathered = [torch.empty_like(padded) for _ in rows]
    dist.all_gather(gathered, padded, group=ranks.dp_group)
    return [values[:, :total] for values, total in zip(gathered, totals)]
