"""The student in training on this process's ranks; life-cycle names follow NeMo-Aligner."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlkd_nemo.engine.ranks import Ranks, release_cached_memory

import torch
import torch.distributed as dist

from rlkd_nemo.config.memory import NOTHING_TO_OFFLOAD
from rlkd_nemo.config.schema import Model
from rlkd_nemo.engine.model.build import build_model
from rlkd_nemo.engine.pipeline import prepare_micro_batches, run_micro_batches, spread
from rlkd_nemo.engine.scoring import sequence_log_probs
from rlkd_nemo.engine.state.offload import StateOffload
from rlkd_nemo.engine.state.optimizer import build_optimizer, wrap_for_training
from rlkd_nemo.errors import ConfigError, NonFiniteError
from rlkd_nemo.interfaces import RolloutEngine
from rlkd_nemo.lifecycle.watchdog import mark
from rlkd_nemo.losses.batch import TokenLoss
from rlkd_nemo.losses.metrics import Measured, Metric, Tally, measured, merge, pack, unpack, values
from rlkd_nemo.training.batch import MicroBatch, SequenceBatch
from rlkd_nemo.types import Problem, Rollout

# (log_probs [batch, tokens], mask [batch, tokens], fields) -> TokenLoss
Objective = Callable[[torch.Tensor, torch.Tensor, Mapping[str, torch.Tensor]], TokenLoss]


class RLKDActor:
    """A Megatron GPTModel with its optimizer, under tensor, pipeline, context and data parallelism.

    Every rank calls every method with the same arguments; data-parallel ranks take their share of the rows themselves.

    Args:
        model: architecture and training settings; `vocab_size` the number of real token ids.
        total_updates: optimizer updates of the whole run (length of the learning-rate decay).
        trainable: False builds no optimizer (evaluation only).
    """

    def __init__(
        self,
        model: Model,
        vocab_size: int,
        ranks: Ranks,
        *,
        pad_id: int,
        precision: str = "32",
        gradient_clip_val: float = 1.0,
        total_updates: int = 1,
        trainable: bool = True,
    ) -> None:
        self.ranks, self.settings, self.pad_id, self.vocab_size = ranks, model, pad_id, vocab_size
        self.bare_model = build_model(model, vocab_size, ranks, precision)
        self.hidden_model = self.bare_model.hidden_model
        self.model = self.bare_model
        self.optimizer = self.scheduler = None
        self._offload: StateOffload | None = None
        if trainable:
            if model.optim.offload_states and ranks.device.type == "cpu":
                raise ConfigError(NOTHING_TO_OFFLOAD)
            self.model = wrap_for_training(self.bare_model, model.optim)
            self.optimizer, self.scheduler = build_optimizer(
                self.model, model.optim, gradient_clip_val=gradient_clip_val, total_updates=total_updates
            )
            if model.optim.offload_states:
                self._offload = StateOffload(self.optimizer, self.bare_model, ranks.device)
        self.updates = 0  # optimizer updates so far: the weight version

    def prepare_for_training(self) -> None:
        """Enter training mode, the optimizer's states on the device."""
        if self._offload is not None:
            self._offload.reload()
        self.model.train()

    def finish_training(self) -> None:
        """Leave training mode, as `prepare_for_inference`."""
        self.prepare_for_inference()

    def prepare_for_training_step(self) -> None:
        """Clear gradients."""
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()

    def finish_training_step(self) -> None:
        """Count the update."""
        self.updates += 1

    def prepare_for_inference(self) -> None:
        """Enter inference mode, every weight in its place; with `model.optim.offload_states`, the states on the host."""
        self.hidden_model.settle()
        self.model.eval()
        if self._offload is not None:
            self._offload.offload()
            release_cached_memory()

    def infer(self, sampler: RolloutEngine, problems: Sequence[Problem], group_size: int, **how: Any) -> list[Rollout]:
        """Responses of the current weights: `sampler` is refitted first, then asked.

        Args: how: `stream`, `temperature`, `max_new_tokens` of `RolloutEngine.generate`.
        """
        sampler.refit(self.updates)
        return sampler.generate(problems, group_size, **how)

    def finish_inference(self) -> None:
        """Leave inference mode."""

    def get_inference_log_probs(
        self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], *, temperature: float
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Log-probs and entropies of every response token, float32 [len(response)] a row, under the current weights."""
        return sequence_log_probs(
            self.bare_model, self.ranks, prompts, responses, temperature=temperature, pad_id=self.pad_id
        )

    def get_loss_and_metrics(
        self, batch: SequenceBatch, objective: Objective, *, temperature: float = 1.0, forward_only: bool = False
    ) -> tuple[float, dict[str, float]]:
        """Loss of the batch, sum over tokens of weight x per-token loss, and the objective's metrics.

        Unless `forward_only`, gradients are left in Megatron's buffers, summed over data- and context-parallel
        ranks.
        Returns: the same numbers on every rank; `entropy` (mean over tokens, nats) is added to the metrics.
        Raises: NonFiniteError naming the micro-batch, on every rank alike.
        """
        micro = self._micro_batches(batch)
        kept = self._run(micro, objective, temperature, forward_only)
        self._refuse_non_finite([float(loss) for loss, _ in kept], micro, "loss")
        loss, found = self._reduce(kept)
        return loss, values(found)

    def update(
        self, batch: SequenceBatch, objective: Objective, *, temperature: float = 1.0, tally: Tally | None = None
    ) -> dict[str, float]:
        """One optimizer update. If no token has weight the optimizer does not step.

        Args: tally: gets the objective's metrics with their counts of tokens as well, to be joined over updates.
        Returns: metrics of the objective plus `loss`, `grad_norm`, `learning_rate`, `entropy`.
        Raises: NonFiniteError before anything is stepped, so the weights stay those of the last good update.
        """
        self.prepare_for_training_step()
        micro = self._micro_batches(batch)
        kept = self._run(micro, objective, temperature, False)
        self._refuse_non_finite([float(loss) for loss, _ in kept], micro, "loss")
        loss, found = self._reduce(kept)
        self.optimizer.prepare_grads()
        grad_norm = float(self.optimizer.get_grad_norm())
        if not math.isfinite(grad_norm):
            self._blame_gradient(micro, objective, temperature)
        self.scheduler.step(1)
        learning_rate = self.optimizer.param_groups[0]["lr"]
        if any(bool((row != 0).any()) for row in batch.weights):
            mark("optimizer")
            self.optimizer.step()
        self.finish_training_step()
        if tally is not None:
            tally.add(found)
        return {**values(found), "loss": loss, "grad_norm": grad_norm, "learning_rate": float(learning_rate)}

    def _micro_batches(self, batch: SequenceBatch) -> list[MicroBatch]:
        config = self.hidden_model.config
        return prepare_micro_batches(batch, self.settings, config, self.ranks, self.pad_id, forward_only=False)[0]

    def _run(
        self, micro: Sequence[MicroBatch], objective: Objective, temperature: float, forward_only: bool
    ) -> list[tuple[torch.Tensor, dict[str, Metric]]]:
        def function(log_probs: torch.Tensor, entropies: torch.Tensor, mb: MicroBatch):
            result = objective(spread(log_probs, mb.mask), mb.mask, mb.fields)
            loss = (mb.weights * result.per_token).sum()
            entropy = Metric.mean(entropies, torch.ones_like(entropies, dtype=torch.bool))
            return loss, (loss.detach(), {**result.metrics, "entropy": entropy})

        return run_micro_batches(
            self.bare_model if forward_only else self.model,
            self.hidden_model,
            micro,
            function,
            ranks=self.ranks,
            vocab_size=self.vocab_size,
            temperature=temperature,
            chunk=self.settings.log_prob_chunk_tokens,
            forward_only=forward_only,
        )

    def _reduce(self, kept: Sequence[tuple[torch.Tensor, dict[str, Metric]]]) -> tuple[float, dict[str, Measured]]:
        """Joined over micro-batches, data- and context-parallel ranks, then handed from the last pipeline stage to all."""
        result: list = [None]
        if self.ranks.is_last_stage:
            metrics = functools.reduce(merge, (part for _, part in kept))
            sums, maxima = pack(metrics)
            total = torch.stack([value.double() for value, _ in kept]).sum()
            both = torch.cat([total.reshape(1), sums.reshape(-1)])
            if self.ranks.dp_size * self.ranks.cp_size > 1:
                dist.all_reduce(both, group=self.ranks.token_group)
                dist.all_reduce(maxima, dist.ReduceOp.MAX, group=self.ranks.token_group)
            result = [(float(both[0]), measured(unpack(metrics, both[1:].reshape(-1, 2), maxima)))]
        if self.ranks.pp_size > 1:
            source = dist.get_global_rank(self.ranks.pp_group, self.ranks.pp_size - 1)
            dist.broadcast_object_list(result, source, group=self.ranks.pp_group)
        return result[0]

    def _refuse_non_finite(self, values: Sequence[float], micro: Sequence[MicroBatch], what: str) -> None:
        """Raise on every rank when any rank saw a non-finite value; `values` is empty off the last stage."""
        bad = [index for index, value in enumerate(values) if not math.isfinite(value)]
        # One number a rank: 0, or 1 + the first bad micro-batch.
        flags = torch.zeros(self.ranks.world_size, dtype=torch.long, device=self.ranks.device)
        flags[self.ranks.world_rank] = bad[0] + 1 if bad else 0
        dist.all_reduce(flags)
        if not flags.any():
            return
        rank = int(flags.nonzero()[0])
        index = int(flags[rank]) - 1
        mine = f" (rows {micro[index].rows[:16]} of the update)" if rank == self.ranks.world_rank else ""
        raise NonFiniteError(
            f"non-finite {what} in micro-batch {index + 1} of {len(micro)} on rank {rank}{mine} at update "
            f"{self.updates + 1}; nothing was stepped, the last checkpoint stands. "
            "A smaller model.optim.lr or a lower trainer.rlkd.gradient_clip_val are the usual cures"
        )

    def _blame_gradient(self, micro: Sequence[MicroBatch], objective: Objective, temperature: float) -> None:
        """Finite loss, non-finite gradient: run the micro-batches one by one to name the one at fault, and raise."""
        norms = []
        for one in micro:
            self.prepare_for_training_step()
            self._run([one], objective, temperature, False)
            self.optimizer.prepare_grads()
            norms.append(float(self.optimizer.get_grad_norm()))
        self._refuse_non_finite(norms, micro, "gradient")
        raise NonFiniteError(
            f"non-finite gradient at update {self.updates + 1}, though each of {len(micro)} micro-batches alone is "
            "finite: their sum overflows; lower model.optim.lr or the weights of the loss"
        )
