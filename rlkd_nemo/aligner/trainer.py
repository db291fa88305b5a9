"""NeMo-Aligner's REINFORCE trainer, turned into RLKD: groups, group advantages, teacher, several updates a batch.

The loop, its timers, logs, validation, checkpoints and resume are the parent's. Overridden is what differs: how a rollout
batch is gathered, scored and shared out (the parent gives every data-parallel rank the whole batch), what is counted (the
parent adds rollouts to a counter of prompts), and an update (skipped where no rollout was scored, never with a NaN).
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from rlkd_nemo.aligner.compat import check

check()

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from nemo_aligner.algorithms.reinforce import ReinforceRolloutBatch, ReinforceTrainer, compute_num_rollout_microbatches
from nemo_aligner.utils import parallel_state
from nemo_aligner.utils.distributed import rebalance_nd_tensor
from nemo_aligner.utils.parallel_state import is_trt_llm_reshard, trt_llm_reshard_region
from nemo_aligner.utils.train_utils import clip_gradients
from nemo_aligner.utils.utils import cpu_dict

from rlkd_nemo.advantages import group_statistics
from rlkd_nemo.aligner.rollouts import refuse_too_many_failures, response_mask, score_rows, update_share
from rlkd_nemo.config.aligner import SECTION, batch_problems, read
from rlkd_nemo.config.objectives import needs_teacher
from rlkd_nemo.config.schema import Gate
from rlkd_nemo.errors import ConfigError, NonFiniteError, ShapeError
from rlkd_nemo.interfaces import Teacher
from rlkd_nemo.training.exchange import agree
from rlkd_nemo.training.gate import teacher_gate
from rlkd_nemo.training.step import bind

log = logging.getLogger(__name__)


class RLKDRolloutBatch(ReinforceRolloutBatch):
    """A rollout batch that knows its groups: `groups` int64 [rows], equal for rollouts of one prompt."""

    def chunk(self, rank: int, split_size: int, seed: int | None = None, per_update: int | None = None) -> Any:
        """The rows of data-parallel rank `rank` of `split_size`, whole groups to an update; `seed` is not used."""
        rows = update_share(self["groups"], per_update or len(self["groups"]), rank, split_size)
        return self.take(rows)

    def take(self, rows: torch.Tensor) -> Any:
        """The batch of these rows, in that order."""
        return type(self)({key: value[rows] for key, value in self.data.items()})


class RLKDTrainer(ReinforceTrainer):
    """Keywords as the parent's, and `teacher`: anything with the Teacher protocol, None where the objective reads none.

    `cfg` is `trainer.reinforce` with the section `rlkd` (`config/aligner.py`). A remote teacher is asked by every rank for
    its data-parallel share; `FrozenTeacher` is the one in this process.

    Raises: ConfigError with everything that is wrong between the settings; GateError from `fit` for an objective that
    would not feel its teacher; FailureBudgetError; NonFiniteError; ShapeError for rewards of another form.
    """

    def __init__(self, cfg: Any, model: Any, *args: Any, teacher: Teacher | None = None, **kwargs: Any) -> None:
        self.settings, self.objective_name, self.objective = read(cfg.get("rlkd"))
        problems = batch_problems(cfg, model.cfg, parallel_state.get_data_parallel_world_size())
        if needs_teacher(self.objective) and teacher is None:
            problems.append(
                f"{SECTION}.objective.name={self.objective_name} reads a teacher and none was given; set "
                "teacher.restore_from_path, or choose grpo"
            )
        if problems:
            raise ConfigError(problems)
        if teacher is not None and not needs_teacher(self.objective):
            log.warning("a teacher was given, but objective %s reads none: it is not asked", self.objective_name)
            teacher = None
        super().__init__(cfg, model, *args, **kwargs)
        # The parent's switch for the frozen start model; here its KL is a term of the loss.
        self.compute_init_policy_kl = self.objective.reference_kl > 0
        self.teacher = teacher
        self.consumed_rollouts = 0

    def fit(self) -> None:
        """As the parent's, behind the check that the objective feels its teacher."""
        teacher_gate(
            self.objective_name, self.objective, Gate(min_teacher_influence=self.settings.min_teacher_influence)
        )
        super().fit()

    @torch.no_grad()
    def generate_rollouts(self) -> tuple[dict, dict, dict]:
        """Rollouts of the next prompts, all that an update reads; and metrics, and durations."""
        with self.timer("prepare_for_inference"):
            self.model.prepare_for_inference()
        rollouts, metrics = self._run_inference(
            self.train_dataloader_builder, consumed_samples=self.consumed_samples, is_validation=False
        )
        # The sampler's position is a number of prompts.
        self.consumed_samples += metrics["rollout_size"] // self.cfg.num_rollouts_per_prompt
        self.consumed_rollouts += metrics["rollout_size"]
        data, more = self.generate_reinforce_data(rollouts)
        with self.timer("finish_inference"):
            self.model.finish_inference()
        counters = {"consumed_samples": self.consumed_samples, "consumed_rollouts": self.consumed_rollouts}
        return data, metrics | more | counters, self.timer.consume_durations()

    def generate_reinforce_data(self, rollout_batch: Any) -> tuple[dict, dict]:
        """What `get_loss_and_metrics` reads, for this rank's rows; the metrics were made on the whole batch."""
        keys = ["response_tokens", "mask", "weights", "advantages", "logprobs"]
        optional = ["init_logprobs", "teacher_logprobs", "teacher_mask"]
        data = {key: rollout_batch[key] for key in [*keys, *optional] if key in rollout_batch}
        if "init_logprobs" in data:
            data["ref_logprobs"] = data.pop("init_logprobs")
        return data, {}

    def _run_inference(self, dataloader_builder: Any, consumed_samples: int, is_validation: bool) -> tuple[Any, dict]:
        """Rollouts with rewards; in training with log-probs, advantages and weights, this data-parallel rank's rows."""
        reshard = trt_llm_reshard_region if self.trtllm_reshard else nullcontext
        seeded(self.model.cfg.seed, "validation" if is_validation else "train", self.step)
        with reshard():
            batches, futures = self._sample(dataloader_builder, consumed_samples, is_validation)
            whole = RLKDRolloutBatch.from_rollout_batches(
                batches, eos_id=self.model.tokenizer.eos_id, rollout_batch_seq_length=self.cfg.rollout_batch_seq_length
            ).gather_and_balance_globally()
        local = RLKDRolloutBatch()
        if not is_validation:  # while the rewards are on their way
            local = self._share_of(whole)
            self._teach(local)
        with reshard(), self.timer("critic_wait"):
            whole["rewards"] = self._rewards(futures)
        refuse_too_many_failures(whole["rewards"], self.settings.max_failed_fraction, f"{SECTION}.max_failed_fraction")
        if not is_validation:
            whole.update(self._score(whole))
            scored = self._share_of(whole)
            local.update({key: scored[key] for key in ("rewards", "mask", "weights", "advantages", "valid")})
        return local, cpu_dict(self.compute_rollout_metrics(whole))

    def _sample(self, builder: Any, consumed_samples: int, is_validation: bool) -> tuple[list[dict], list[Any]]:
        """Responses to this rank's prompts and, for each batch of them, the rewards to come."""
        loader = builder(consumed_samples=consumed_samples)
        count = compute_num_rollout_microbatches(loader)
        with self.timer("batch_iterator_init"):
            prompts = self.batch_iterator_cls(iter(loader.batch_sampler), count, loader.dataset, self.collate_fn)
        kind, repeats = ("validation", 1) if is_validation else ("train", self.cfg.num_rollouts_per_prompt)
        # Unique over data-parallel ranks; a rank has far fewer prompts than that.
        group = parallel_state.get_data_parallel_rank() << 32
        batches, futures = [], []
        with self.timer("generate"):
            for prompt in prompts:
                for sample in range(repeats):
                    batch = self.model.infer(prompt)
                    rows = len(batch["prompt_lengths"])
                    groups = group + torch.arange(rows, device=batch["prompt_lengths"].device)
                    ids = [f"{kind}-{self.step}-{g}-{sample}" for g in groups.tolist()]
                    futures.append((rows, self.rm.infer_rm({**batch, "sample_ids": ids})))
                    batches.append({**batch, "groups": groups})
                group += rows
        if not batches:
            key = "num_val_samples" if is_validation else "num_rollout_samples"
            raise ConfigError(
                f"model.reinforce.{key}={loader.batch_sampler.global_batch_size} prompts, but the {kind} data has only "
                f"{len(loader.dataset)}; give more in model.data.data_prefix.{kind} or ask for fewer"
            )
        return batches, futures

    def _share_of(self, whole: RLKDRolloutBatch) -> RLKDRolloutBatch:
        # Outside of any resharding: log-probs and updates run in the training layout.
        rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
        return whole.chunk(rank, size, per_update=self.cfg.model_gbs)

    def _teach(self, local: RLKDRolloutBatch) -> None:
        """Old, reference and teacher log-probs of these rows, once a batch, in the training layout."""
        tokens = local["response_tokens"]
        with self.timer("logprobs"):
            local["logprobs"] = self.model.get_inference_log_probs(tokens)
        if self.compute_init_policy_kl:
            with self.timer("init_logprobs"):
                local["init_logprobs"] = self.model.get_init_policy_logprobs(tokens)
        if self.teacher is None:
            return
        mask = response_mask(local["prompt_lengths"], local["response_lengths"], tokens.size(1))
        starts, ends = local["prompt_lengths"].tolist(), local["response_lengths"].tolist()
        rows = tokens.tolist()
        with self.timer("teacher_logprobs"):
            values = self.teacher.log_probs(
                [row[:start] for row, start in zip(rows, starts)],
                [row[start:end] for row, start, end in zip(rows, starts, ends)],
            )
        lengths, given = (mask.sum(1)).tolist(), [len(row) for row in values]
        if given != lengths:
            raise ShapeError(
                f"the teacher gave log-probs for {given[:8]} tokens; wanted one for each token of the {len(lengths)} responses: "
                f"{lengths[:8]} (the first eight)"
            )
        taught = torch.zeros(mask.shape, dtype=torch.float32, device=tokens.device)
        taught = taught.masked_scatter(mask, torch.cat(list(values)).to(taught))
        # A remote teacher may answer twice and not the same; the ranks that share a row must learn from one answer.
        group = parallel_state.get_model_parallel_group()
        if dist.get_world_size(group) > 1:
            dist.broadcast(taught, parallel_state.get_model_parallel_src_rank(), group=group)
        local["teacher_logprobs"] = taught
        dropped = tokens[:, 1:] == self.model.tokenizer.eos_id
        local["teacher_mask"] = mask & ~dropped if self.settings.drop_teacher_at_end else mask

    def _rewards(self, futures: list[tuple[int, Any]]) -> torch.Tensor:
        """float32 [rows of all data-parallel ranks], NaN where the reward server has none."""
        parts = [_checked(future.result(), rows) for rows, future in futures]
        rewards = torch.cat(parts).to(next(self.model.parameters()).device)
        if is_trt_llm_reshard():
            rewards = rebalance_nd_tensor(rewards, group=mpu.get_pipeline_model_parallel_group())
        return rebalance_nd_tensor(rewards, group=mpu.get_data_parallel_group())

    def _score(self, whole: RLKDRolloutBatch) -> dict[str, torch.Tensor]:
        width = whole["response_tokens"].size(1)
        return score_rows(
            whole["rewards"],
            whole["groups"],
            whole["is_end"],
            response_mask(whole["prompt_lengths"], whole["response_lengths"], width),
            per_update=self.cfg.model_gbs,
            settings=self.settings,
            objective=self.objective,
            max_new_tokens=self.model.cfg.reinforce.length_params.max_length,
        )

    def compute_rollout_metrics(self, rollout_batch: Any) -> dict[str, Any]:
        """The parent's, with the mean reward over scored rollouts only, and how groups and failures stand."""
        metrics = super().compute_rollout_metrics(rollout_batch)
        rewards = rollout_batch["rewards"]
        scored = rewards[~torch.isnan(rewards)]
        metrics["rewards"] = scored.mean().item() if len(scored) else float("nan")
        metrics["failed_fraction"] = 1.0 - len(scored) / len(rewards)
        if "valid" in rollout_batch:
            statistics = group_statistics(rewards, rollout_batch["groups"], rollout_batch["valid"])
            metrics["unusable_groups"] = float(statistics.too_few)
            metrics["zero_advantage_groups"] = float(statistics.zero_variance)
        return metrics

    def run_training(self, dataloader_iter: Iterable[dict]) -> tuple[float, dict]:
        """`epochs` passes over this batch's updates. An update without a scored rollout leaves the weights alone.

        Raises: NonFiniteError before anything is stepped, on every rank alike.
        """
        self.model.prepare_for_training()
        self.model.set_objective(bind(self.objective_name, self.objective, self.step))
        updates, device = list(dataloader_iter), next(self.model.parameters()).device
        loss, metrics = 0.0, {}
        for batch in [batch for _ in range(self.settings.epochs) for batch in updates]:
            self.optimizer.zero_grad()
            self.model.prepare_for_training_step()
            loss, metrics = self.model.get_loss_and_metrics(batch=batch, forward_only=False)
            self.model.finish_training_step()
            _refuse_non_finite(loss, "loss", self.step)
            norm = clip_gradients(self.model, self.cfg.gradient_clip_val)
            norm = norm.item() if torch.is_tensor(norm) else norm
            if norm is not None:  # Megatron's distributed optimizer clips in its own step and tells none
                _refuse_non_finite(norm, "gradient norm", self.step)
                metrics["grad_norm"] = norm
            metrics["lr"] = self.optimizer.param_groups[0]["lr"]
            if agree(bool(batch["weights"].any()), device):
                self.optimizer.step()
            else:
                log.warning("step %d: an update without a single scored rollout was skipped", self.step)
            self.scheduler.step()
            metrics["optim_step"] = self.reinforce_optimization_step
            self.logger.log_metrics(metrics, step=self.step, prefix="train_optim/")
            self.reinforce_optimization_step += 1
        self.model.finish_training()
        self.optimizer.zero_grad()
        return loss, metrics

    def state_dict(self) -> dict[str, int]:
        """The counters; each is part of a checkpoint's name, from which NeMo-Aligner reads it back."""
        return {**super().state_dict(), "consumed_rollouts": self.consumed_rollouts}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """The counters of a checkpoint. Raises: ConfigError when ranks found different checkpoints."""
        self.step = state_dict["step"]
        self.consumed_samples = state_dict["consumed_samples"]
        self.reinforce_optimization_step = state_dict["reinforce_optimization_step"]
        self.consumed_rollouts = state_dict["consumed_rollouts"]
        mine = torch.tensor(
            [*self.state_dict().values()], dtype=torch.int64, device=next(self.model.parameters()).device
        )
        first = mine.clone()
        dist.broadcast(first, 0)
        if agree(bool((mine != first).any()), mine.device):
            raise ConfigError(
                f"ranks found different checkpoints: rank {dist.get_rank()} has {mine.tolist()}, rank 0 {first.tolist()}; "
                "exp_manager.explicit_log_dir must be one folder for all nodes"
            )
        self.set_max_steps()


def retrieve_rlkd_trainer_state_dict(ptl_trainer: Any) -> dict[str, int] | None:
    """The counters in the name of the checkpoint that is resumed, RLKD's included; None without one."""
    from nemo_aligner.utils.train_script_utils import retrieve_custom_trainer_state_dict
    from nemo_aligner.utils.utils import extract_value_from_ckpt

    state = retrieve_custom_trainer_state_dict(ptl_trainer)
    if state is not None:
        state["consumed_rollouts"] = extract_value_from_ckpt("consumed_rollouts", ptl_trainer.ckpt_path)
    return state


def seeded(seed: int, what: str, step: int) -> None:
    """Seed this rank's sampling for one batch of rollouts, alike on the ranks of a model-parallel group.

    A checkpoint keeps no generator's state, so a resumed run samples what the interrupted one would have. TensorRT-LLM
    has a seed of its own.
    """
    name = f"{seed} {what} {step} {parallel_state.get_data_parallel_rank()}"
    torch.manual_seed(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big"))


def _checked(rewards: Any, rows: int) -> torch.Tensor:
    shape, dtype = tuple(getattr(rewards, "shape", ())), getattr(rewards, "dtype", type(rewards).__name__)
    if shape != (rows, 1) or dtype != torch.float32:
        raise ShapeError(
            f"the reward model gave {dtype} {shape} for {rows} responses; wanted torch.float32 ({rows}, 1). "
            "remote_rm.reward_model must name a server of NeMo-Aligner's protocol"
        )
    return rewards.flatten()


def _refuse_non_finite(value: float, what: str, step: int) -> None:
    if not math.isfinite(value):
        raise NonFiniteError(
            f"{what} is {value} at step {step}; nothing was stepped, the last checkpoint stands. A smaller model.optim.lr "
            "or a lower trainer.reinforce.gradient_clip_val are the usual cures"
        )
