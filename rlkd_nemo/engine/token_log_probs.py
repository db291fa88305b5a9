"""Log-probs and entropies of given tokens straight from hidden states, for student, old, reference and teacher alike.

The logits exist one tile at a time: a block of tokens by a slice of this rank's share of the vocabulary. A running
maximum and running sums join the tiles (an online soft-max), so the tensor-parallel ranks speak once a call, not once
a tile; backward turns each tile into its gradient in place. The last few tiles of a forward pass wait for that, the
others are made again. Columns that only pad the vocabulary have probability 0. Arithmetic is fp32 whatever the weights
are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist

# Numbers in a tile: 64 MiB of fp32 logits. Large enough for square matrix products at full speed.
TILE = 1 << 24
# Tiles that wait for backward, 256 MiB at most: a quarter of 2,000 tokens over 131,072 ids, all of a small vocabulary.
KEPT = 4
# On a CPU the passes over a tile go a few rows at a time, which stay in its cache; a GPU takes a tile at once.
_CACHED = 1 << 17
# Logit of columns that only pad the vocabulary: e^x is 0, and unlike -inf it stays a number when multiplied by that 0.
_NEVER = -1e30


def token_log_probs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    vocab_size: int,
    temperature: float = 1.0,
    group: dist.ProcessGroup | None = None,
    chunk: int = 4096,
    reduce_grad: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """log softmax(hidden @ weight.T / temperature)[target] and the entropy of that distribution.

    Args:
        hidden: [tokens, hidden]; equal on all ranks of `group`.
        weight: [padded vocabulary / TP, hidden], this rank's rows, in order of rank.
        targets: int64 [tokens], ids below `vocab_size`.
        group: the tensor-parallel group; None for one rank.
        chunk: tokens of a tile; its columns are as many as keep it at 64 MiB of logits.
        reduce_grad: sum the gradient of `hidden` over `group`; False where a gather's backward does it.
    Returns: float32 [tokens] log-probs (nats, differentiable) and float32 [tokens] entropies (nats, detached).
    Rows whose incoming gradient is zero cost nothing in backward.
    """
    backward = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    kept = KEPT if backward else 1
    return _TokenLogProbs.apply(hidden, weight, targets, vocab_size, temperature, group, chunk, reduce_grad, kept)


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, vocab_size, temperature, group, chunk, reduce_grad, num_kept):
        size = dist.get_world_size(group) if group is not None else 1
        first = (dist.get_rank(group) if size > 1 else 0) * weight.shape[0]
        num_real = min(max(vocab_size - first, 0), weight.shape[0])  # the last ranks may hold nothing but padding
        local = targets - first
        owned = (local >= 0) & (local < weight.shape[0])
        local = local.clamp(0, weight.shape[0] - 1)

        # Over this rank's columns: maximum, sum of e^(x - max), target's logit, sum of e^(x - max) (x - max).
        top = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        sums = torch.zeros((3, *targets.shape), dtype=torch.float32, device=hidden.device)
        kept: deque[_Kept] = deque(maxlen=num_kept)
        tiles = _Tiles(hidden, weight, num_real, temperature, chunk, buffers=num_kept)
        for rows, columns in tiles.of(slice(0, targets.shape[0]), slice(0, weight.shape[0])):
            if columns.start == 0:
                kept.clear()  # those of one block of tokens only, so that what they leave is rectangles
            logits = tiles.logits(rows, columns)
            here, column = _place(local[rows], owned[rows], columns)
            sums[1, rows] += torch.where(here, logits.gather(-1, column[:, None]).squeeze(-1), 0.0)
            _fold(logits, top[rows], sums[0, rows], sums[2, rows], first_tile=columns.start == 0, spare=tiles.spare)
            kept.append(_Kept(rows.start, columns, logits, top[rows].clone()))
        whole = top
        if size > 1:
            whole = top.clone()
            dist.all_reduce(whole, dist.ReduceOp.MAX, group=group)
            _shift(top, whole, sums[0], sums[2])
        sums[1] -= torch.where(owned, whole, 0.0)
        if size > 1:
            dist.all_reduce(sums, group=group)  # one call: gloo and NCCL pay by the call at this size
        log_sum = sums[0].log()
        log_z = whole + log_sum
        ctx.save_for_backward(hidden, weight, local, owned, log_z)
        ctx.args = (num_real, temperature, group if size > 1 and reduce_grad else None, chunk)
        ctx.kept = kept
        entropy = log_sum - sums[2] / sums[0]
        ctx.mark_non_differentiable(entropy)
        return sums[1] - log_sum, entropy

    @staticmethod
    def backward(ctx, grad, _):
        hidden, weight, local, owned, log_z = ctx.saved_tensors
        num_real, temperature, group, chunk = ctx.args
        kept, ctx.kept = ctx.kept, ()  # they are used up: a second backward makes all of them again
        live = grad.nonzero().squeeze(-1)
        every = live.shape[0] == grad.shape[0]
        states, grad, log_z, local, owned = (
            part if every else part[live] for part in (hidden, grad, log_z, local, owned)
        )
        grad_states = torch.zeros(states.shape, dtype=torch.float32, device=hidden.device)
        grad_weight = _new_sum(weight, live.shape[0]) if ctx.needs_input_grad[1] else None
        scale = -grad / temperature
        for rows, columns, slope, shift in _slopes(
            kept, live, log_z, _Tiles(states, weight, num_real, temperature, chunk)
        ):
            # d log p(target) / d logits = onehot - softmax
            here, column = _place(local[rows], owned[rows], columns)
            for some in _parts(slope):
                part = slope[some]
                part.sub_(shift[some, None]).exp_()
                part.scatter_add_(-1, column[some, None], -here[some, None].to(part.dtype))
                part.mul_(scale[rows][some, None])
            slope = slope.to(weight.dtype)
            _add_product(grad_states[rows], slope, weight[columns])
            if grad_weight is not None:
                _add_product(grad_weight[columns], slope.T, states[rows], first=rows.start == 0)
        if every:
            grad_hidden = grad_states.to(hidden.dtype)
        else:
            grad_hidden = torch.zeros_like(hidden)
            grad_hidden[live] = grad_states.to(hidden.dtype)
        if group is not None:
            dist.all_reduce(grad_hidden, group=group)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None, None, None, None


class _Kept(NamedTuple):
    """A tile after the forward pass: its logits less `top`, the maxima of its rows up to then."""

    start: int
    columns: slice
    shifted: torch.Tensor
    top: torch.Tensor


class _Tiles:
    """The tiles of [tokens, vocabulary] and the buffers that their logits take in turn."""

    def __init__(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        num_real: int,
        temperature: float,
        chunk: int,
        *,
        buffers: int = 1,
    ) -> None:
        self.hidden, self.weight, self.num_real, self.temperature = hidden, weight, num_real, temperature
        self.num_rows = max(1, min(chunk, hidden.shape[0]))
        self.num_columns = max(1, min(weight.shape[0], TILE // self.num_rows))
        self.size = self.num_rows * self.num_columns
        self.buffers: deque[torch.Tensor | None] = deque([None] * buffers)
        cached = self.size if hidden.is_cuda else min(self.size, max(_CACHED, self.num_columns))
        self.spare = torch.empty(cached, dtype=torch.float32, device=hidden.device)

    def of(self, tokens: slice, vocabulary: slice) -> Iterator[tuple[slice, slice]]:
        """(rows, columns) of each tile of a rectangle; all tiles of a block of tokens one after another."""
        for row in range(tokens.start, tokens.stop, self.num_rows):
            for column in range(vocabulary.start, vocabulary.stop, self.num_columns):
                last = min(column + self.num_columns, vocabulary.stop)
                yield slice(row, min(row + self.num_rows, tokens.stop)), slice(column, last)

    def logits(self, rows: slice, columns: slice) -> torch.Tensor:
        """fp32 [rows, columns], valid until as many calls later as there are buffers."""
        states, part = self.hidden[rows], self.weight[columns]
        if self.hidden.dtype != torch.float32:
            logits = (states @ part.T).float()
        else:
            shape = (states.shape[0], part.shape[0])
            buffer = self.buffers.popleft()
            buffer = self.hidden.new_empty(self.size) if buffer is None else buffer
            self.buffers.append(buffer)
            logits = torch.mm(states, part.T, out=buffer[: shape[0] * shape[1]].view(shape))
        if self.temperature != 1.0:
            logits.div_(self.temperature)
        if columns.stop > self.num_real:
            logits[:, max(self.num_real - columns.start, 0) :] = _NEVER
        return logits


def _slopes(
    kept: Sequence[_Kept], live: torch.Tensor, log_z: torch.Tensor, tiles: _Tiles
) -> Iterator[tuple[slice, slice, torch.Tensor, torch.Tensor]]:
    """For all live rows and all columns: (rows, columns, what is made of logits, what it is too large by against log p).

    Args: live: which rows of the forward pass those of `log_z` and `tiles` are; `kept`: of one block of its rows.
    """
    number, width = live.shape[0], tiles.weight.shape[0]
    before = int((live < kept[0].start).sum()) if kept else number  # live rows ahead of the block with kept tiles
    begun = kept[0].columns.start if kept else width
    for rectangle in ((slice(0, before), slice(0, width)), (slice(before, number), slice(0, begun))):
        for rows, columns in tiles.of(*rectangle):
            yield rows, columns, tiles.logits(rows, columns), log_z[rows]
    rows = slice(before, number)
    for tile in kept if number > before else ():
        some = live[rows] - tile.start
        whole = some.shape[0] == tile.top.shape[0]
        shifted, top = (part if whole else part[some] for part in (tile.shifted, tile.top))
        yield rows, tile.columns, shifted, log_z[rows] - top


def _place(local: torch.Tensor, owned: torch.Tensor, columns: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether each row's target is in this tile, and its column there (some column where it is not)."""
    here = owned & (local >= columns.start) & (local < columns.stop)
    return here, (local - columns.start).clamp(0, columns.stop - columns.start - 1)


def _fold(
    logits: torch.Tensor,
    top: torch.Tensor,
    total: torch.Tensor,
    weighted: torch.Tensor,
    *,
    first_tile: bool,
    spare: torch.Tensor,
) -> None:
    """Join a tile to the running maximum and sums, in place; of `logits` the new maximum is taken."""
    for some in _parts(logits):
        part = logits[some]
        highest = part.amax(-1)
        if not first_tile:
            highest = torch.maximum(highest, top[some])
            _shift(top[some], highest, total[some], weighted[some])
        part.sub_(highest[:, None])
        exp = torch.exp(part, out=spare[: part.numel()].view(part.shape))
        total[some] += exp.sum(-1)
        weighted[some] += exp.mul_(part).sum(-1)
        top[some] = highest


def _shift(old: torch.Tensor, new: torch.Tensor, total: torch.Tensor, weighted: torch.Tensor) -> None:
    """The sums relative to maximum `new` instead of `old`, in place."""
    gap = old - new
    ratio = gap.exp()
    weighted.add_(gap * total).mul_(ratio)
    total.mul_(ratio)


def _parts(tile: torch.Tensor) -> Iterator[slice]:
    """Blocks of rows that a pass takes at once."""
    step = tile.shape[0] if tile.is_cuda else max(1, _CACHED // tile.shape[1])
    return (slice(start, min(start + step, tile.shape[0])) for start in range(0, tile.shape[0], step))


def _new_sum(like: torch.Tensor, summands: int) -> torch.Tensor:
    """fp32, to be filled by `_add_product`, whose first call for a place need not read it on a CPU."""
    new = torch.zeros_like if like.is_cuda or not summands else torch.empty_like
    return new(like, dtype=torch.float32)


def _add_product(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, first: bool = False) -> None:
    """out += a @ b for an fp32 `out`; half-precision products are not rounded before they are summed."""
    if a.is_cuda and a.dtype != torch.float32:
        torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
    else:
        out.addmm_(a.float(), b.float(), beta=0 if first and not a.is_cuda else 1)
