"""Log-probs and entropies of given tokens straight from hidden states, for student, old, reference and teacher alike.

The logits of `chunk` tokens exist at a time, this rank's share of the vocabulary only; backward makes them again.
Columns that only pad the vocabulary are left out of the soft-max. Arithmetic is fp32 whatever the weights are.
"""

from __future__ import annotations

import torch
import torch.distributed as dist


def token_log_probs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    vocab_size: int,
    temperature: float = 1.0,
    group: dist.ProcessGroup | None = None,
    chunk: int = 1024,
    reduce_grad: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """log softmax(hidden @ weight.T / temperature)[target] and the entropy of that distribution.

    Args:
        hidden: [tokens, hidden]; equal on all ranks of `group`.
        weight: [padded vocabulary / TP, hidden], this rank's rows, in order of rank.
        targets: int64 [tokens], ids below `vocab_size`.
        group: the tensor-parallel group; None for one rank.
        chunk: tokens whose logits exist at once; memory is chunk x vocabulary / TP floats.
        reduce_grad: sum the gradient of `hidden` over `group`; False where a gather's backward does it.
    Returns: float32 [tokens] log-probs (nats, differentiable) and float32 [tokens] entropies (nats, detached).
    Rows whose incoming gradient is zero cost nothing in backward.
    """
    return _TokenLogProbs.apply(hidden, weight, targets, vocab_size, temperature, group, chunk, reduce_grad)


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, vocab_size, temperature, group, chunk, reduce_grad):
        size = dist.get_world_size(group) if group is not None else 1
        first = (dist.get_rank(group) if size > 1 else 0) * weight.shape[0]
        local = targets - first
        owned = (local >= 0) & (local < weight.shape[0])
        local = local.clamp(0, weight.shape[0] - 1)
        log_z = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        picked = torch.empty_like(log_z)
        entropy = torch.empty_like(log_z)
        for part in _chunks(targets.shape[0], chunk):
            logits = _logits(hidden[part], weight, vocab_size - first, temperature)
            top = logits.amax(-1)
            if size > 1:
                dist.all_reduce(top, dist.ReduceOp.MAX, group=group)
            target = logits.gather(-1, local[part, None]).squeeze(-1) - top
            shifted = logits.sub_(top[:, None])
            exp = shifted.exp()
            # 0 * -inf in padding columns would be NaN in the entropy.
            weighted = exp * shifted.masked_fill(exp == 0, 0.0)
            sums = torch.stack([exp.sum(-1), target.masked_fill(~owned[part], 0.0), weighted.sum(-1)])
            if size > 1:
                dist.all_reduce(sums, group=group)  # one call: gloo and NCCL pay by the call at this size
            log_sum = sums[0].log()
            log_z[part] = top + log_sum
            picked[part] = sums[1] - log_sum
            entropy[part] = log_sum - sums[2] / sums[0]
        ctx.save_for_backward(hidden, weight, local, owned, log_z)
        ctx.args = (vocab_size - first, temperature, group if size > 1 and reduce_grad else None, chunk)
        ctx.mark_non_differentiable(entropy)
        return picked, entropy

    @staticmethod
    def backward(ctx, grad, _):
        hidden, weight, local, owned, log_z = ctx.saved_tensors
        num_real, temperature, group, chunk = ctx.args
        grad_hidden = torch.zeros_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        live = grad.nonzero().squeeze(-1)
        for part in _chunks(live.shape[0], chunk):
            rows = live[part]
            states = hidden[rows]
            logits = _logits(states, weight, num_real, temperature)
            # d log p(target) / d logits = onehot - softmax
            slope = logits.sub_(log_z[rows, None]).exp_().neg_()
            slope.scatter_add_(-1, local[rows, None], owned[rows, None].to(slope.dtype))
            slope.mul_((grad[rows] / temperature)[:, None])
            slope = slope.to(weight.dtype)
            grad_hidden[rows] = (slope @ weight).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight += slope.T @ states
        if group is not None:
            dist.all_reduce(grad_hidden, group=group)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None, None, None


def _logits(hidden: torch.Tensor, weight: torch.Tensor, num_real: int, temperature: float) -> torch.Tensor:
    """fp32 [tokens, local vocabulary]; columns from `num_real` on are padding and become -inf."""
    logits = (hidden @ weight.T).float()
    if temperature != 1.0:
        logits /= temperature
    if num_real < weight.shape[0]:
        logits[:, max(num_real, 0) :] = float("-inf")
    return logits


def _chunks(total: int, size: int):
    return (slice(start, min(start + size, total)) for start in range(0, total, size))
