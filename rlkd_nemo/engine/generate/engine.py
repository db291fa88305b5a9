"""Rollouts on the training ranks: the student's weights, a KV cache and named random numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rlkd_nemo.engine.ranks import Ranks

import numpy as np
import torch
import torch.distributed as dist

from rlkd_nemo.engine.generate.batch import decode_batch
from rlkd_nemo.engine.generate.collect import WeightCollector
from rlkd_nemo.engine.generate.decode import Decoder
from rlkd_nemo.engine.generate.sampling import uniforms
from rlkd_nemo.errors import ConfigError, InputError, RlkdError
from rlkd_nemo.interfaces import Tokenizer
from rlkd_nemo.training.partition import share
from rlkd_nemo.types import Problem, Rollout


class EmbeddedRollout:
    """Implements `interfaces.RolloutEngine` for a model of `build_model`, the student's or a frozen one.

    Every rank calls every method with the same arguments and gets the same rollouts. With a rollout tensor-parallel
    size of 1 each rank decodes its share of the problems on whole weights; with the model's own, each tensor-parallel
    group does, on its shards.

    Args:
        batch_size: sequences decoded at once by one rank or group.
    Raises: ConfigError on a size that is neither, or a tokenizer with another vocabulary than the model's.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        ranks: Ranks,
        tokenizer: Tokenizer,
        *,
        tensor_model_parallel_size: int = 1,
        batch_size: int = 128,
    ) -> None:
        inner = model.module if hasattr(model, "ddp_config") else model
        if tensor_model_parallel_size not in (1, ranks.tp_size):
            raise ConfigError(
                f"rollout.tensor_model_parallel_size={tensor_model_parallel_size} is neither 1 nor "
                f"model.tensor_model_parallel_size={ranks.tp_size}; choose one of them"
            )
        if batch_size < 1:
            raise ConfigError(f"rollout.batch_size={batch_size}; wanted at least 1")
        if tokenizer.vocab_size != inner.vocab_size:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model was built for {inner.vocab_size}; "
                "model.tokenizer is not this model's"
            )
        self.ranks, self.tokenizer, self.batch_size = ranks, tokenizer, batch_size
        self.context = inner.settings.encoder_seq_length
        self.collector = WeightCollector(inner, ranks, sharded=tensor_model_parallel_size > 1)
        self.decoder: Decoder | None = None
        self.version = -1
        # Told each batch that this rank has decoded, while others and the rest are still on their way; `build` sets it.
        self.on_decoded: Callable[[list[Rollout]], None] | None = None
        # A decoding unit is a rank, or a tensor-parallel group; rank 0 of a group speaks for it.
        if self.collector.sharded:
            self.num_units = ranks.pp_size * ranks.dp_size * ranks.cp_size
            self.unit = (ranks.pp_rank * ranks.dp_size + ranks.dp_rank) * ranks.cp_size + ranks.cp_rank
            self.speaks = ranks.tp_rank == 0
        else:
            self.num_units, self.unit, self.speaks = ranks.world_size, ranks.world_rank, True

    def refit(self, version: int) -> None:
        """Take over the model's weights as they are now.

        Args: version: optimizer updates behind them; rollouts carry it.
        """
        weights = self.collector.collect()
        if self.decoder is None:
            self.decoder = Decoder(weights, self.context)
        self.version = version

    def generate(
        self,
        problems: Sequence[Problem],
        group_size: int,
        *,
        stream: tuple[Any, ...],
        temperature: float,
        max_new_tokens: int,
    ) -> list[Rollout]:
        """`group_size` responses for each problem, group-major, the same list on every rank.

        A response's random numbers are named by (stream, problem id, sample), so that it does not depend on the other
        problems, the batch or the ranks; a problem asked twice in one call goes on counting samples.

        Args:
            stream: name of the random numbers, such as ("train", seed, step).
            temperature: divides the logits; 0 takes the likeliest token and reports its log-prob at 1.
            max_new_tokens: a response that has not ended by then is `truncated`.
        Raises: InputError naming the problem whose prompt is empty or does not fit the context; RlkdError before
            the first `refit`.
        """
        if self.decoder is None:
            raise RlkdError("the rollout engine holds no weights yet: call refit(version) before generate")
        if group_size < 1 or max_new_tokens < 1 or temperature < 0:
            raise InputError(
                f"group_size={group_size}, max_new_tokens={max_new_tokens}, temperature={temperature}; wanted at least "
                "1, at least 1 and not below 0 (rlkd.group_size, rollout.max_new_tokens, rollout.temperature)"
            )
        prompts = [self._encode(problem, max_new_tokens) for problem in problems]
        seen: Counter[str] = Counter()
        rows: list[list[tuple[int, int]]] = []  # per problem: (sample, number of the sample in its random stream)
        for problem in problems:
            rows.append([(sample, seen[problem.id] + sample) for sample in range(group_size)])
            seen[problem.id] += group_size
        mine = share([len(prompt) for prompt in prompts], self.unit, self.num_units)
        work = [(group, sample, number) for group in mine for sample, number in rows[group]]
        packed = []
        for start in range(0, len(work), self.batch_size):
            part = work[start : start + self.batch_size]
            packed.append(self._decode(problems, prompts, part, stream, temperature, max_new_tokens))
            if self.on_decoded is not None and self.speaks:
                self.on_decoded(
                    [
                        self._rollout(problems[g], g, s, prompts[g], ids.tolist(), values.tolist(), temperature)
                        for (g, s), ids, values in zip(*packed[-1])
                    ]
                )
        rollouts: dict[tuple[int, int], Rollout] = {}
        for keys, ids, log_probs in self._exchange(packed):
            for (group, sample), response, values in zip(keys, ids, log_probs):
                rollouts[group, sample] = self._rollout(
                    problems[group], group, sample, prompts[group], response.tolist(), values.tolist(), temperature
                )
        return [rollouts[group, sample] for group in range(len(problems)) for sample in range(group_size)]

    def limit(self, problem: Problem, sample: int, max_new_tokens: int) -> int:
        """Most new tokens of one response; here the same for all."""
        return max_new_tokens

    def _encode(self, problem: Problem, max_new_tokens: int) -> list[int]:
        prompt = self.tokenizer.encode(problem.prompt)
        if not prompt:
            raise InputError(f"problem {problem.id}: its prompt has no tokens; wanted at least one to continue")
        if len(prompt) + max_new_tokens > self.context:
            raise InputError(
                f"problem {problem.id}: its prompt has {len(prompt)} tokens, and with max_new_tokens={max_new_tokens} "
                f"they exceed the context of {self.context}; shorten the prompt, lower rollout.max_new_tokens (or "
                "validation.max_new_tokens) or raise model.encoder_seq_length"
            )
        return prompt

    def _decode(
        self,
        problems: Sequence[Problem],
        prompts: Sequence[list[int]],
        work: Sequence[tuple[int, int, int]],
        stream: tuple[Any, ...],
        temperature: float,
        max_new_tokens: int,
    ) -> tuple[list[tuple[int, int]], list[np.ndarray], list[np.ndarray]]:
        """(group, sample) of each row, its tokens and log-probs; `work` has prompts longest first, groups together."""
        groups = Counter(group for group, _, _ in work)  # in order of first appearance
        numbers = np.zeros((len(work), max_new_tokens))
        if temperature > 0:
            for row, (group, _, number) in zip(numbers, work):
                row[:] = uniforms((*stream, problems[group].id, number), max_new_tokens)
        ids, log_probs = decode_batch(
            self.decoder,
            [prompts[group] for group in groups],
            list(groups.values()),
            numbers,
            [self.limit(problems[group], sample, max_new_tokens) for group, sample, _ in work],
            temperature=temperature,
            eos_id=self.tokenizer.eos_id,
        )
        return [(group, sample) for group, sample, _ in work], ids, log_probs

    def _exchange(self, packed: list) -> list:
        """The batches of all units, on every rank."""
        if self.ranks.world_size == 1:
            return packed
        parts: list = [None] * self.ranks.world_size
        flat = [
            (keys, np.array([len(row) for row in ids]), np.concatenate(ids).astype(np.int32), np.concatenate(values))
            for keys, ids, values in packed
        ]
        # Arrays, not lists of numbers: they are pickled as they lie in memory.
        dist.all_gather_object(parts, flat if self.speaks else [])
        whole = []
        for keys, lengths, ids, values in (batch for part in parts for batch in part):
            cuts = np.cumsum(lengths)[:-1]
            whole.append((keys, np.split(ids, cuts), np.split(values, cuts)))
        return whole

    def _rollout(
        self,
        problem: Problem,
        group: int,
        sample: int,
        prompt: list[int],
        response: list[int],
        log_probs: list[float],
        temperature: float,
    ) -> Rollout:
        truncated = response[-1] != self.tokenizer.eos_id
        return Rollout(
            problem=problem,
            group=group,
            sample=sample,
            prompt_ids=list(prompt),
            response_ids=response,
            log_probs=log_probs,
            text=self.tokenizer.decode(response if truncated else response[:-1]),
            truncated=truncated,
            weight_version=self.version,
            temperature=temperature,
        )
