"""RLKD's loop: rollout, score, teach, advantage, update, sync, log."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass

from rlkd_nemo.config.objectives import PolicyObjective
from rlkd_nemo.config.schema import Config
from rlkd_nemo.errors import FailureBudgetError
from rlkd_nemo.gsrm.audit import step_inflation
from rlkd_nemo.interfaces import Actor, RolloutEngine, Scorer, Task, Teacher
from rlkd_nemo.lifecycle.watchdog import deadline
from rlkd_nemo.losses.metrics import Tally
from rlkd_nemo.training import step as steps
from rlkd_nemo.training.evaluate import Evaluation, evaluate
from rlkd_nemo.training.exchange import map_shared
from rlkd_nemo.training.gate import log_prob_gap, sampler_gate, teacher_gate
from rlkd_nemo.types import Problem, Rollout, Score

log = logging.getLogger(__name__)

# A process's first step builds kernels and connections: its stages may be silent so many times longer.
FIRST_STEP = 10


@dataclass
class TrainerState:
    """What a checkpoint keeps beside weights and optimizer."""

    step: int = 0
    prompts_taken: int = 0  # data position
    rollouts: int = 0
    rollout_tokens: int = 0
    rollout_seconds: float = 0.0


class RLKDTrainer:
    """Runs the student against rewards and teacher; knows Protocols only, no ranks and no servers.

    Every rank runs the same trainer on the same data; the actor, the sampler and the scorer share the work.

    Args:
        cfg: the whole config; `objective` its typed settings, under `objective_name`.
        actor: `RLKDActor`, or another that keeps the protocol.
        teacher, reference: frozen models; None where the objective needs none.
        drop_teacher_at: see `step.update_batch`.
        on_step: (step, metrics), after each step, validation included.
        on_rollouts: (step, experience), for the audit.
        probe: (step, rollouts, scores) to further metrics, before the update; need not be the same on every rank.
        save: (step, metrics, state), when a checkpoint is due.
        stop_requested: consensus over ranks, asked after each step.
    """

    def __init__(
        self,
        *,
        cfg: Config,
        objective_name: str,
        objective: PolicyObjective,
        task: Task,
        actor: Actor,
        engine: RolloutEngine,
        scorer: Scorer,
        teacher: Teacher | None,
        reference: Teacher | None,
        drop_teacher_at: int | None = None,
        on_step: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
        on_rollouts: Callable[[int, steps.Experience], None] = lambda step, experience: None,
        probe: Callable[[int, Sequence[Rollout], Sequence[Score]], dict[str, float]] = lambda *_: {},
        save: Callable[[int, dict[str, float], dict], None] = lambda step, metrics, state: None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        self.cfg, self.objective_name, self.objective = cfg, objective_name, objective
        self.task, self.actor, self.engine, self.scorer = task, actor, engine, scorer
        self.teacher, self.reference, self.drop_teacher_at = teacher, reference, drop_teacher_at
        self.on_step, self.on_rollouts, self.save, self.stop_requested = on_step, on_rollouts, save, stop_requested
        self.probe = probe
        self.state = TrainerState()
        self._gated = False
        self._patience = FIRST_STEP
        self._saved = -1  # the step of the newest checkpoint
        self._clock: dict[str, float] = {}

    def fit(self) -> bool:
        """Train to `trainer.rlkd.max_steps`. Returns False if it was asked to stop (saved by then).

        Raises: FailureBudgetError when too many rollouts of a step have no reward; the state before it is saved by then.
        """
        loop = self.cfg.trainer.rlkd
        with self._bounded("start"):
            teacher_gate(self.objective_name, self.objective, self.cfg.gate)
            self.actor.prepare_for_inference()
            self.sync()
        if self.state.step == 0 and loop.val_check_interval:
            with self._bounded("first validation"):
                self.on_step(0, self.validate())
        while self.state.step < loop.max_steps:
            before = dataclasses.replace(self.state)
            try:
                metrics = self.train_step()
            except FailureBudgetError:
                # Every rank has the same scores and comes here. Nothing was learned: the state before the step is kept.
                self.state = before
                if self.state.step != self._saved:
                    self.save(self.state.step, {}, self.state_dict())
                if self.stop_requested():
                    return False
                raise
            last = self.state.step == loop.max_steps
            if loop.val_check_interval and (last or self.state.step % loop.val_check_interval == 0):
                with self._timed("validate"):
                    metrics |= self.validate()
            metrics |= self._take_times()
            with self._bounded(f"end of step {self.state.step}"):
                self.on_step(self.state.step, metrics)
                stop = self.stop_requested()
            if stop or last or (loop.save_interval and self.state.step % loop.save_interval == 0):
                self.save(self.state.step, metrics, self.state_dict())
                self._saved = self.state.step
            if stop and not last:
                return False
        return True

    def train_step(self) -> dict[str, float]:
        """One batch of rollouts and all updates on it. Returns its metrics."""
        started = time.perf_counter()
        with self._timed("rollout"):
            rollouts, scores, sampling = self.rollout()
        with self._timed("score"):
            experience = self.advantage(rollouts, scores)
        self.teach(experience)
        metrics = steps.reward_metrics(experience) | sampling | step_inflation(scores)
        metrics |= self.probe(self.state.step + 1, rollouts, scores)
        metrics |= self.gate(experience)
        with self._timed("update"):
            metrics |= self.update(experience)
        with self._timed("sync"):
            self.sync()
        self._patience = 1
        self.state.step += 1
        self.on_rollouts(self.state.step, experience)
        self._clock["step"] = time.perf_counter() - started
        return metrics

    def rollout(self) -> tuple[list[Rollout], list[Score], dict[str, float]]:
        """Sample and score `num_prompts` groups; with dynamic sampling, replace groups whose rewards are all equal.

        The replacement (DAPO, arXiv:2503.14476) is bounded by `max_rounds`; what is still flat then stays in.
        """
        settings, sampling = self.cfg.rlkd, self.cfg.rlkd.dynamic_sampling
        rollouts, scores = self._sample(self._next_problems(settings.num_prompts), 0)
        tokens = sum(len(r.response_ids) for r in rollouts)
        rounds = 0
        while sampling.enabled and rounds < sampling.max_rounds:
            flat = _flat_groups(rollouts, scores, sampling.by)
            if not flat:
                break
            rounds += 1
            fresh, fresh_scores = self._sample(self._next_problems(len(flat)), rounds)
            tokens += sum(len(r.response_ids) for r in fresh)
            usable = {r.group for r in fresh} - _flat_groups(fresh, fresh_scores, sampling.by)
            old_rows, new_rows = _rows_of(rollouts), _rows_of(fresh)
            # A usable new group takes the place of a flat one, row by row, as copies: a group's number is its place.
            for old, new in zip(sorted(flat), sorted(usable)):
                for row, source in zip(old_rows[old], new_rows[new]):
                    rollouts[row] = dataclasses.replace(fresh[source], group=old)
                    scores[row] = fresh_scores[source]
        extra = {"rollout/tokens": float(tokens)}
        if sampling.enabled:
            extra["rollout/extra_rounds"] = float(rounds)
            extra["rollout/flat_groups_left"] = float(len(_flat_groups(rollouts, scores, sampling.by)))
        return rollouts, scores, extra

    def advantage(self, rollouts: list[Rollout], scores: list[Score]) -> steps.Experience:
        """Group advantages over the whole batch, before it is split."""
        return steps.advantage(
            rollouts,
            scores,
            std=self.cfg.rlkd.advantage.std,
            overlong=self.cfg.rlkd.overlong,
            max_new_tokens=self.cfg.rollout.max_new_tokens,
            scale=self.cfg.reward.outcome,
        )

    def teach(self, experience: steps.Experience) -> None:
        """Old, teacher and reference log-probs, once a batch, in the training layout."""
        prompts = [r.prompt_ids for r in experience.rollouts]
        responses = [r.response_ids for r in experience.rollouts]
        with self._timed("log_probs"):
            experience.old_log_probs, _ = self.actor.get_inference_log_probs(
                prompts, responses, temperature=self.cfg.rollout.temperature
            )
        with self._timed("teach"):
            if self.teacher is not None:
                experience.teacher_log_probs = self.teacher.log_probs(prompts, responses)
            if self.reference is not None:
                experience.ref_log_probs = self.reference.log_probs(prompts, responses)

    def gate(self, experience: steps.Experience) -> dict[str, float]:
        """Sampler against trainer; a refusal on the first batch of a process, a logged number afterwards."""
        assert experience.old_log_probs is not None  # teach comes first
        if self._gated:
            return log_prob_gap(experience.rollouts, experience.old_log_probs)
        self._gated = True
        fp8 = self.cfg.model.fp8 is not None
        return sampler_gate(experience.rollouts, experience.old_log_probs, self.cfg.gate, fp8=fp8)

    def update(self, experience: steps.Experience) -> dict[str, float]:
        """`updates_per_batch` x `epochs` optimizer updates, each over whole groups.

        Returns: `loss/...`: means over the tokens of all updates; loss, gradient norm and learning rate, of which each
            update has one, as means over the updates.
        """
        collected: list[dict[str, float]] = []
        tally = Tally()
        bound = steps.bind(self.objective_name, self.objective, self.state.step)
        self.actor.prepare_for_training()
        for _ in range(self.cfg.rlkd.epochs):
            for rows in steps.updates(experience, self.cfg.rlkd.updates_per_batch):
                if not rows:
                    log.warning("step %d: an update without a single scored rollout was skipped", self.state.step + 1)
                    continue
                batch = steps.update_batch(
                    experience,
                    rows,
                    self.objective,
                    max_new_tokens=self.cfg.rollout.max_new_tokens,
                    drop_teacher_at=self.drop_teacher_at,
                )
                collected.append(self.actor.update(batch, bound, temperature=self.cfg.rollout.temperature, tally=tally))
        self.actor.finish_training()
        out = {"loss/updates": float(len(collected))}
        if collected:
            of_updates = {"grad_norm": "grad_norm", "learning_rate": "learning_rate", "total": "loss"}
            means = {new: sum(one[name] for one in collected) / len(collected) for new, name in of_updates.items()}
            out |= {f"loss/{name}": value for name, value in sorted((tally.values() | means).items())}
        return out

    def sync(self) -> None:
        """Give the sampler the trainer's weights."""
        self.engine.refit(self.actor.updates)

    def validate(self) -> dict[str, float]:
        """Metrics on the validation split; the same problems every time."""
        return self.evaluation("validation").metrics()

    def evaluation(self, split: str, *, refuse_failures: bool = False) -> Evaluation:
        """Evaluate the sampler's weights on `validation.num_problems` problems of `split`."""
        settings = self.cfg.validation
        problems = self.task.generate(
            split, 0, self.cfg.data.validation_difficulty or self.cfg.data.train_difficulty, settings.num_problems
        )
        return evaluate(
            self.engine,
            self.scorer,
            problems,
            samples=settings.samples,
            temperature=settings.temperature,
            max_new_tokens=settings.max_new_tokens or self.cfg.rollout.max_new_tokens,
            seed=0,
            refuse_failures=refuse_failures,
        )

    def state_dict(self) -> dict:
        """For the checkpoint."""
        return asdict(self.state)

    def load_state_dict(self, state: dict) -> None:
        """From the checkpoint."""
        self.state = TrainerState(**state)
        self._saved = self.state.step

    def _next_problems(self, number: int) -> list[Problem]:
        start = self.state.prompts_taken
        self.state.prompts_taken += number
        return self.task.generate("train", self.cfg.data.shuffle_seed, self.cfg.data.train_difficulty, number, start)

    def _sample(self, problems: Sequence[Problem], round_: int) -> tuple[list[Rollout], list[Score]]:
        rollouts = self.engine.generate(
            problems,
            self.cfg.rlkd.group_size,
            stream=("train", self.cfg.model.seed, self.state.step, round_),
            temperature=self.cfg.rollout.temperature,
            max_new_tokens=self.cfg.rollout.max_new_tokens,
        )
        with self._timed("score", minus="rollout"):
            scores = map_shared(lambda part: self.scorer.score(part), rollouts)
        # Before dynamic sampling may replace a group: a failed group must not vanish uncounted.
        steps.refuse_too_many_failures(scores, self.cfg.rlkd.max_failed_fraction)
        self.state.rollouts += len(rollouts)
        self.state.rollout_tokens += sum(len(r.response_ids) for r in rollouts)
        return rollouts, scores

    def _bounded(self, what: str) -> AbstractContextManager[None]:
        return deadline(self._patience * self.cfg.trainer.watchdog_s, what)

    @contextmanager
    def _timed(self, stage: str, minus: str | None = None):
        """Add to `time/<stage>_s`; a stage inside another is taken off it."""
        started = time.perf_counter()
        try:
            with self._bounded(f"{stage} of step {self.state.step + 1}"):
                yield
        finally:
            spent = time.perf_counter() - started
            self._clock[stage] = self._clock.get(stage, 0.0) + spent
            if minus is not None:
                self._clock[minus] = self._clock.get(minus, 0.0) - spent

    def _take_times(self) -> dict[str, float]:
        out = {f"time/{stage}_s": seconds for stage, seconds in self._clock.items()}
        self.state.rollout_seconds += self._clock.get("rollout", 0.0)
        self._clock = {}
        return out


def _rows_of(rollouts: Sequence[Rollout]) -> dict[int, list[int]]:
    """Rows of each group, in order."""
    rows: dict[int, list[int]] = {}
    for row, rollout in enumerate(rollouts):
        rows.setdefault(rollout.group, []).append(row)
    return rows


def _flat_groups(rollouts: Sequence[Rollout], scores: Sequence[Score], by: str) -> set[int]:
    """Groups whose scored rollouts all have the same reward (or outcome), fewer than two scored included."""
    values: dict[int, list[float]] = {rollout.group: [] for rollout in rollouts}
    for rollout, score in zip(rollouts, scores):
        value = score.reward if by == "reward" else score.components["outcome"].value
        if score.valid and value is not None:
            values[rollout.group].append(value)
    return {group for group, of_group in values.items() if len(of_group) < 2 or max(of_group) - min(of_group) < 1e-8}
