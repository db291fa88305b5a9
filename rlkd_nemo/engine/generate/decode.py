"""The decoder's forward pass in plain PyTorch: prompts at once, then one token a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as functional

from rlkd_nemo.engine.generate.cache import KVCache
from rlkd_nemo.engine.generate.weights import DecoderWeights, LayerWeights
from rlkd_nemo.lifecycle.watchdog import mark

# Tokens of prompts that pass through the layers at once.
_PREFILL_TOKENS = 8192

# (queries [tokens, groups, heads per group, d], keys [tokens, groups, d], values alike) -> [tokens, heads * d]
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Decoder:
    """RMSNorm, SwiGLU, RoPE and grouped-query attention with a cache, equal to the Megatron model's forward.

    Args:
        weights: whole, or one tensor-parallel share; in the second case the ranks of its group call together and two
            all-reduces a layer, one for the embedding and an all-gather of the logits join their parts.
        context: most tokens of a row.
    """

    def __init__(self, weights: DecoderWeights, context: int) -> None:
        self.weights = weights
        half = weights.head_dim // 2
        angles = torch.outer(torch.arange(context, dtype=torch.float32), weights.rotary_frequencies.cpu())
        turns = torch.polar(torch.full_like(angles, weights.attention_factor), angles)
        self.rotations = turns.view(context, 1, 1, half).to(weights.device)  # complex64 [context, 1, 1, head_dim / 2]
        self.share = dist.get_rank(weights.group) if weights.group is not None else 0

    def prefill(
        self, prompts: Sequence[Sequence[int]], groups: Sequence[int], new_tokens: int
    ) -> tuple[KVCache, torch.Tensor]:
        """Read each prompt once and give its keys and values to the rows that continue it.

        Args:
            prompts: token ids, longest first; none is empty.
            groups: rows of each prompt, in order.
            new_tokens: columns to reserve.
        Returns: the cache and the logits of each row's first token, float32 [rows, vocabulary].
        """
        device = self.weights.device
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        of_row = torch.repeat_interleave(torch.arange(len(prompts)), torch.tensor(groups)).to(device)
        cache = KVCache(self.weights, lengths.to(device)[of_row], new_tokens)
        last = []
        first_prompt = first_row = 0
        while first_prompt < len(prompts):
            mark(f"prompt {first_prompt + 1} of {len(prompts)}")
            width = len(prompts[first_prompt])
            end_prompt = min(len(prompts), first_prompt + max(1, _PREFILL_TOKENS // width))
            end_row = first_row + sum(groups[first_prompt:end_prompt])
            tokens = torch.zeros(end_prompt - first_prompt, width, dtype=torch.long)
            for line, prompt in zip(tokens, prompts[first_prompt:end_prompt]):
                line[: len(prompt)] = torch.tensor(prompt)
            rows = slice(first_row, end_row)
            hidden = self._read(tokens.to(device), cache, rows, of_row[rows] - first_prompt)
            ends = lengths[first_prompt:end_prompt] - 1
            last.append(hidden[torch.arange(len(ends)), ends.to(device)])
            first_prompt, first_row = end_prompt, end_row
        return cache, self._logits(torch.cat(last))[of_row]

    def step(self, tokens: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """Read one token a row, int64 [rows]; logits of the next, float32 [rows, vocabulary]."""
        rotation = self.rotations[cache.positions]
        cache.advance()
        mask = cache.mask
        hidden = self._embed(tokens)
        for number, layer in enumerate(self.weights.layers):

            def attend(query, key, value, number=number):
                keys, values = cache.append(number, key, value)
                # A group's queries are the rows of its own attention: keys and values are not repeated.
                out = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
                return out.reshape(out.shape[0], -1)

            hidden = self._layer(hidden, layer, rotation, attend)
        cache.positions.add_(1)
        return self._logits(hidden)

    def _read(self, tokens: torch.Tensor, cache: KVCache, rows: slice, prompts: torch.Tensor) -> torch.Tensor:
        """Hidden states [prompts, width, hidden] of right-padded prompts; under a causal mask nothing sees padding."""
        number, width = tokens.shape
        rotation = self.rotations[:width].repeat(number, 1, 1, 1)
        hidden = self._embed(tokens.view(-1))
        for index, layer in enumerate(self.weights.layers):

            def attend(query, key, value, index=index):
                key, value = (part.unflatten(0, (number, width)) for part in (key, value))
                cache.fill(index, key, value, rows, prompts)
                out = functional.scaled_dot_product_attention(
                    query.flatten(1, 2).unflatten(0, (number, width)).transpose(1, 2),
                    key.transpose(1, 2),
                    value.transpose(1, 2),
                    is_causal=True,
                    enable_gqa=query.shape[2] > 1,
                )
                return out.transpose(1, 2).reshape(number * width, -1)

            hidden = self._layer(hidden, layer, rotation, attend)
        return hidden.view(number, width, -1)

    def _layer(self, hidden: torch.Tensor, layer: LayerWeights, rotation: torch.Tensor, attend: Attend) -> torch.Tensor:
        """[tokens, hidden] -> [tokens, hidden]; rotation complex64 [tokens, 1, 1, head_dim / 2]."""
        weights = self.weights
        per_group = weights.num_heads // weights.num_groups
        normed = self._norm(hidden, layer.input_norm)
        fused = (
            torch.mm(normed, layer.qkv) if layer.qkv_bias is None else torch.addmm(layer.qkv_bias, normed, layer.qkv)
        )
        fused = fused.view(-1, weights.num_groups, per_group + 2, weights.head_dim)
        turned = fused[:, :, : per_group + 1]
        if layer.q_norm is not None and layer.k_norm is not None:
            parts = turned.split([per_group, 1], dim=2)
            turned = torch.cat([self._norm(part, norm) for part, norm in zip(parts, (layer.q_norm, layer.k_norm))], 2)
        pairs = torch.view_as_complex(turned.float().unflatten(-1, (-1, 2)))
        turned = torch.view_as_real(pairs * rotation).flatten(-2).to(fused.dtype)
        mixed = attend(turned[:, :, :per_group], turned[:, :, per_group], fused[:, :, per_group + 1])
        hidden = self._add(hidden, mixed, layer.proj)
        gate, up = torch.mm(self._norm(hidden, layer.pre_mlp_norm), layer.fc1).chunk(2, dim=-1)
        return self._add(hidden, functional.silu(gate).mul_(up), layer.fc2)

    def _norm(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(hidden, weight.shape, weight, self.weights.norm_eps)

    def _add(self, hidden: torch.Tensor, inner: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """hidden + inner @ weight, summed over tensor-parallel ranks."""
        if self.weights.group is None:
            return torch.addmm(hidden, inner, weight)
        part = torch.mm(inner, weight)
        dist.all_reduce(part, group=self.weights.group)
        return part.add_(hidden)

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        table = self.weights.embedding
        if self.weights.group is None:
            return functional.embedding(tokens, table)
        local = tokens - self.share * table.shape[0]
        foreign = (local < 0) | (local >= table.shape[0])
        part = functional.embedding(local.clamp(0, table.shape[0] - 1), table).masked_fill_(foreign[:, None], 0.0)
        dist.all_reduce(part, group=self.weights.group)
        return part

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [rows, vocabulary]; without the columns that pad it."""
        weights = self.weights
        logits = torch.mm(self._norm(hidden, weights.final_norm), weights.output)
        if weights.group is not None:
            parts = [torch.empty_like(logits) for _ in range(dist.get_world_size(weights.group))]
            dist.all_gather(parts, logits, group=weights.group)
            logits = torch.cat(parts, dim=1)[:, : weights.vocab_size]
        return logits.float()
