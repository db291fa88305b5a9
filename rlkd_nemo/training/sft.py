"""Supervised warm starts on the actor: loss on the response only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from rlkd_nemo.config.schema import Data, SFTLoop
from rlkd_nemo.errors import InputError
from rlkd_nemo.interfaces import Actor, Demonstrator, Tokenizer
from rlkd_nemo.lifecycle.watchdog import deadline
from rlkd_nemo.losses.batch import TokenLoss
from rlkd_nemo.training.batch import SequenceBatch

log = logging.getLogger(__name__)


def negative_log_likelihood(log_probs: torch.Tensor, mask: torch.Tensor, fields: object) -> TokenLoss:
    """-log p of each response token, [batch, tokens]."""
    return TokenLoss(per_token=-log_probs.masked_fill(~mask, 0.0), metrics={})


def response_batch(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], max_tokens: int) -> SequenceBatch:
    """(prompt, response) texts to a batch whose loss is the mean over all response tokens.

    The end-of-text token is added to each response.
    Raises: InputError when a pair is longer than the context.
    """
    prompts = [tokenizer.encode(prompt) for prompt, _ in pairs]
    responses = [tokenizer.encode(response) + [tokenizer.eos_id] for _, response in pairs]
    for prompt, response, (text, _) in zip(prompts, responses, pairs):
        if len(prompt) + len(response) > max_tokens:
            raise InputError(
                f"an example has {len(prompt)} + {len(response)} tokens, more than "
                f"model.encoder_seq_length={max_tokens}; it starts {text[:60]!r}"
            )
    total = sum(len(response) for response in responses)
    return SequenceBatch(prompts, responses, [torch.full((len(r),), 1.0 / total) for r in responses])


class SFTTrainer:
    """Plain supervised training, resumable.

    Args:
        actor: the student; all ranks call alike.
        watchdog_s: longest silence within an update (lifecycle/watchdog.py); the first one has ten times as long.
        on_step: called as (step, metrics) after each update.
        save: called as (step, metrics, extra) every `loop.save_interval` steps and after the last.
        stop_requested: consensus over ranks, asked after each update.
    """

    def __init__(
        self,
        *,
        actor: Actor,
        task: Demonstrator,
        tokenizer: Tokenizer,
        loop: SFTLoop,
        data: Data,
        max_tokens: int,
        seed: int,
        watchdog_s: float,
        on_step: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
        save: Callable[[int, dict[str, float], dict], None] = lambda step, metrics, extra: None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        self.actor, self.task, self.tokenizer = actor, task, tokenizer
        self.loop, self.data, self.max_tokens, self.seed = loop, data, max_tokens, seed
        self.on_step, self.save, self.stop_requested = on_step, save, stop_requested
        self.watchdog_s = watchdog_s
        self.step = 0

    def fit(self) -> bool:
        """Train to `loop.max_steps`. Returns False if stopped early (saved)."""
        self.actor.prepare_for_training()
        patience = 10.0  # kernels are built and connections made in the first update
        while self.step < self.loop.max_steps:
            with deadline(patience * self.watchdog_s, f"supervised update {self.step + 1}"):
                metrics = self.actor.update(self._batch(self.step), negative_log_likelihood)
            patience = 1.0
            self.step += 1
            self.on_step(self.step, metrics)
            stop = self.stop_requested()
            last = self.step == self.loop.max_steps
            if stop or last or (self.loop.save_interval and self.step % self.loop.save_interval == 0):
                self.save(self.step, metrics, {"step": self.step})
            if stop and not last:
                return False
        self.actor.finish_training()
        return True

    def _batch(self, step: int) -> SequenceBatch:
        size = self.data.global_batch_size
        start = step * size
        indices = list(range(start, start + size))
        if self.data.num_paths is not None:
            # A fixed set, walked over and over.
            indices = [index % self.data.num_paths for index in indices]
        pairs = []
        for first, count in _runs(indices):
            pairs += self.task.demonstrations(
                "train",
                self.seed,
                self.data.train_difficulty,
                count,
                strategies=self.data.strategies,
                noise=self.data.noise,
                start=first,
            )
        return response_batch(self.tokenizer, [(problem.prompt, text) for problem, text in pairs], self.max_tokens)


def _runs(indices) -> list[tuple[int, int]]:
    """Consecutive stretches as (start, count)."""
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and runs[-1][0] + runs[-1][1] == index:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((index, 1))
    return runs
