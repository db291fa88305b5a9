"""Decoding one batch of rows to their ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rlkd_nemo.engine.generate.decode import Decoder
from rlkd_nemo.engine.generate.sampling import draw
from rlkd_nemo.lifecycle.watchdog import mark

# Finished rows leave when they are at least this share of those still computed (benchmarks/rollout.py).
_LEAVE_FRACTION = 1 / 8
# Steps between looks at who has finished: a look makes the host wait for a GPU, and costs nothing on CPU.
_LOOK_EVERY = {"cpu": 1, "cuda": 8}


@torch.inference_mode()
def decode_batch(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    groups: Sequence[int],
    uniforms: np.ndarray,
    limits: Sequence[int],
    *,
    temperature: float,
    eos_id: int,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Sample one response for each row.

    Args:
        prompts: token ids, longest first.
        groups: rows of each prompt, in order.
        uniforms: float64 [rows, at least the largest limit], the random numbers of each row.
        limits: most new tokens of each row, at least 1.
    Returns: per row int64 token ids, the end-of-text token included if it came, and float32 log-probs, nats.
    """
    device = decoder.weights.device
    longest = max(limits)
    rows = len(limits)
    numbers = torch.from_numpy(np.ascontiguousarray(uniforms[:, :longest].T)).to(device)
    limit = torch.tensor(limits, device=device)
    look_every = _LOOK_EVERY[device.type]
    uneven = min(limits) < longest
    done = torch.zeros(rows, dtype=torch.bool, device=device)
    names = torch.arange(rows, device=device)  # which row stands where
    tokens = torch.empty(longest, rows, dtype=torch.long, device=device)
    log_probs = torch.empty(longest, rows, dtype=torch.float32, device=device)
    # Since which step the rows stand where they do: kept with the rows, undone at the end.
    spans: list[tuple[int, torch.Tensor]] = [(0, names)]

    cache, logits = decoder.prefill(prompts, groups, longest - 1)
    for step in range(longest):
        mark(f"token {step + 1} of at most {longest}")
        token, log_prob = draw(logits, numbers[step, names], temperature)
        tokens[step, :rows] = token
        log_probs[step, :rows] = log_prob
        done |= token == eos_id
        if uneven:
            done |= limit <= step + 1
        if step + 1 == longest:
            break
        finished = int(done.sum()) if (step + 1) % look_every == 0 else 0
        if finished == rows:
            break
        if finished and finished >= rows * _LEAVE_FRACTION:
            rows -= finished
            # The last rows alive move into the places of the finished ones.
            sources, targets = (~done[rows:]).nonzero()[:, 0] + rows, done[:rows].nonzero()[:, 0]
            cache.shrink(rows, sources, targets)
            order = torch.arange(rows, device=device)
            order[targets] = sources
            token, names, limit = token[order], names[order], limit[order]
            done = torch.zeros_like(done[:rows])
            spans.append((step + 1, names))
        logits = decoder.step(token, cache)
    return _rows(tokens, log_probs, spans, step + 1, limits, eos_id)


def _rows(
    tokens: torch.Tensor,
    log_probs: torch.Tensor,
    spans: list[tuple[int, torch.Tensor]],
    steps: int,
    limits: Sequence[int],
    eos_id: int,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """[steps, places] back to rows, each cut after its end-of-text token or at its limit."""
    ids = np.zeros((len(limits), steps), dtype=np.int64)
    values = np.zeros((len(limits), steps), dtype=np.float32)
    ends = [start for start, _ in spans[1:]] + [steps]
    for (start, names), end in zip(spans, ends):
        where = names.cpu().numpy()
        ids[where, start:end] = tokens[start:end, : len(where)].T.cpu().numpy()
        values[where, start:end] = log_probs[start:end, : len(where)].T.cpu().numpy()
    is_end = ids == eos_id
    lengths = np.where(is_end.any(1), is_end.argmax(1) + 1, steps)
    lengths = np.minimum(lengths, np.asarray(limits))
    return [row[:n] for row, n in zip(ids, lengths)], [row[:n] for row, n in zip(values, lengths)]
