"""NeMo-Aligner's REINFORCE actor with this package's objectives in place of its loss.

Weights, optimizer, precision, recomputation, generation and checkpoints stay NeMo's. What differs from the parent class:
the loss of a token is an objective's, its weight is that of the whole update (so any micro-batch size and any number of
data-parallel ranks give one gradient), log-probs are taken at the sampling temperature over the real vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rlkd_nemo.aligner.compat import check

check()

import torch
import torch.distributed as dist
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from nemo.collections.nlp.modules.common.megatron.utils import get_iterator_k_split
from nemo.collections.nlp.parts.utils_funcs import get_last_rank
from nemo_aligner.models.nlp.gpt.megatron_gpt_reinforce_actor import MegatronGPTReinforceActorModel
from nemo_aligner.utils import parallel_state
from nemo_aligner.utils.distributed import from_parallel_logits_to_logprobs
from nemo_aligner.utils.train_utils import set_sync_funcs

from rlkd_nemo.losses.batch import TokenLoss
from rlkd_nemo.losses.metrics import merge, pack, summary, unpack

# (log_probs [B, S-1], mask [B, S-1], fields) -> TokenLoss
Objective = Callable[[torch.Tensor, torch.Tensor, Mapping[str, torch.Tensor]], TokenLoss]

# Keys of a training batch, beside `response_tokens`, and what an objective calls them.
FIELDS = {
    "logprobs": "old_log_probs",
    "teacher_logprobs": "teacher_log_probs",
    "teacher_mask": "teacher_mask",
    "ref_logprobs": "ref_log_probs",
    "advantages": "advantages",
}


class MegatronGPTRLKDActorModel(MegatronGPTReinforceActorModel):
    """The student. `set_objective` comes before the first `get_loss_and_metrics`."""

    def __init__(self, cfg: Any, trainer: Any) -> None:
        super().__init__(cfg, trainer=trainer)
        self.temperature = float(self.cfg.reinforce.sampling_params.temperature)
        self.objective: Objective | None = None

    def set_objective(self, objective: Objective) -> None:
        """What the next updates differentiate; `training.step.bind` makes it."""
        self.objective = objective

    def selected_log_probs(self, logits: torch.Tensor, tokens: torch.Tensor, inference_only: bool) -> torch.Tensor:
        """fp32 [B, S-1] of the tokens that followed, nats; `logits` [B, S, padded V / TP] of this rank.

        Padding columns of the vocabulary can never be sampled and take no part; the temperature divides the logits.
        """
        logits = logits.float()
        if self.temperature != 1.0:
            logits = logits / self.temperature
        first = parallel_state.get_tensor_model_parallel_rank() * logits.shape[-1]
        real = max(self.tokenizer.vocab_size - first, 0)
        if real < logits.shape[-1]:
            column = torch.arange(logits.shape[-1], device=logits.device)
            # A finite number: a rank of nothing but padding must not compute infinity minus infinity.
            logits = logits.masked_fill(column >= real, torch.finfo(torch.float32).min / 4)
        return from_parallel_logits_to_logprobs(
            vocab_parallel_logits=logits, target=tokens, inference_only=inference_only, higher_stability=True
        )

    def get_actor_forward_output_and_loss_func(self):
        """Megatron's forward step: logits, and the function from logits to (loss, what to keep)."""
        # Megatron divides by the micro-batches, NeMo by the data-parallel ranks; the weights have done both already.
        undo = get_num_microbatches() * parallel_state.get_data_parallel_world_size()
        device = next(self.parameters()).device

        def forward(batches: Iterator[dict[str, torch.Tensor]], model: torch.nn.Module):
            batch = _of_this_stage(next(batches), device)
            logits = model(batch["response_tokens"], batch["position_ids"], batch["attention_mask"], labels=None)

            def loss(logits: torch.Tensor):
                log_probs = self.selected_log_probs(logits, batch["response_tokens"], inference_only=False)
                fields = {name: batch[key] for key, name in FIELDS.items() if key in batch}
                assert self.objective is not None, "set_objective was not called"
                result = self.objective(log_probs, batch["mask"], fields)
                value = (batch["weights"] * result.per_token).sum()
                return undo * value, {"kept": (value.detach(), result.metrics)}

            return logits, loss

        return forward

    def get_loss_and_metrics(
        self, batch: dict[str, torch.Tensor], forward_only: bool
    ) -> tuple[float, dict[str, float]]:
        """Sum over the update's tokens of weight x per-token loss, over all data-parallel ranks; equal on every rank.

        Args:
            batch: this rank's rows of one update: `response_tokens` [B, S]; bool `mask`, float32 `weights`, `logprobs`
                and, where the objective reads them, `teacher_logprobs`, `teacher_mask`, `ref_logprobs` [B, S-1];
                `advantages` [B, 1].
        """
        attention_mask, _, position_ids = self.get_ltor_masks_and_position_ids(tokens=batch["response_tokens"])
        batch = {**batch, "attention_mask": attention_mask, "position_ids": position_ids}
        set_sync_funcs(self, forward_only)
        kept = get_forward_backward_func()(
            forward_step_func=self.get_actor_forward_output_and_loss_func(),
            data_iterator=self._make_data_iterator_list(get_iterator_k_split(batch, get_num_microbatches())),
            model=self.model,
            num_microbatches=get_num_microbatches(),
            forward_only=forward_only,
            seq_length=batch["response_tokens"].size(1),
            micro_batch_size=self.cfg.micro_batch_size,
        )
        return _join([part["kept"] for part in kept])

    def get_logprob_output_only_func(self, inference_only: bool = True):
        """As the parent's, at the sampling temperature and over the real vocabulary."""
        forward_only = self.get_forward_output_only_func()

        def forward(batches: Iterator[Any], model: torch.nn.Module):
            batch = next(batches)
            logits, _ = forward_only(iter([batch]), model)

            def log_probs(logits: torch.Tensor, non_loss_data: bool = True) -> torch.Tensor:
                return self.selected_log_probs(logits, batch[0].to(logits.device), inference_only)

            return logits, log_probs

        return forward


def _of_this_stage(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, Any]:
    """What this pipeline stage reads, on its device; None in place of tensors that only other stages read."""
    first = parallel_state.is_pipeline_first_stage()
    last = parallel_state.is_pipeline_last_stage()

    def wanted(key: str) -> bool:
        if key == "attention_mask":
            return True
        if key == "position_ids":
            return first
        return last or (first and key == "response_tokens")

    return {k: v.to(device, non_blocking=True) if wanted(k) else None for k, v in batch.items()}


def _join(kept: list[tuple[torch.Tensor, dict[str, Any]]]) -> tuple[float, dict[str, float]]:
    """Over micro-batches, then data-parallel ranks, then from the last stage to every rank."""
    result: list[Any] = [None]
    if kept:
        metrics = functools.reduce(merge, (part for _, part in kept))
        sums, maxima = pack(metrics)
        total = torch.stack([value.double() for value, _ in kept]).sum().reshape(1)
        both = torch.cat([total, sums.reshape(-1).to(total.device)])
        group = parallel_state.get_data_parallel_group()
        dist.all_reduce(both, group=group)
        dist.all_reduce(maxima, dist.ReduceOp.MAX, group=group)
        loss = float(both[0])
        result = [(loss, {**summary(unpack(metrics, both[1:].reshape(-1, 2), maxima)), "loss": loss})]
    dist.broadcast_object_list(result, get_last_rank())
    return result[0]
