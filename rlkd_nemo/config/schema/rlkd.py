"""`rlkd`, `reward`, `teacher`, `rollout`, `validation`, `gate`: what a step does."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Advantage:
    """Group advantages (arXiv:2402.03300, 2602.22495)."""

    std: str = "population"  # population (RLAD), sample (TRL, RLKD's release: sample + 1e-4), none (Dr. GRPO)


@dataclass
class DynamicSampling:
    """DAPO: drop groups whose rewards are all equal and sample others in their place."""

    enabled: bool = False
    max_rounds: int = 3  # extra sampling rounds a step; then go on with what there is
    by: str = "reward"  # reward (the weighted sum) or outcome


@dataclass
class Overlong:
    """What becomes of truncated responses."""

    mode: str = "keep"  # keep; mask: out of group statistics and loss; soft: DAPO's length penalty
    buffer_tokens: int = 16  # soft: penalty grows over the last so many tokens before max_new_tokens


@dataclass
class Rlkd:
    """One step: rollouts, scores, updates."""

    num_prompts: int = 16  # groups a step
    group_size: int = 8  # RLAD's logic runs
    updates_per_batch: int = 1  # optimizer updates the rollouts are split into, by whole groups
    epochs: int = 1  # passes over the rollouts
    max_failed_fraction: float = 0.05  # above: stop (design: a failure is never a score)
    advantage: Advantage = field(default_factory=Advantage)
    dynamic_sampling: DynamicSampling = field(default_factory=DynamicSampling)
    overlong: Overlong = field(default_factory=Overlong)


@dataclass
class Reward:
    """Weights of the sum; 3:3:2:2 is RLKD's (arXiv:2505.16142, as reported), each component on [0, 1]."""

    outcome: float = 3.0
    structure: float = 3.0
    format: float = 2.0
    tag: float = 2.0
    structure_only_if_correct: bool = False


@dataclass
class TeacherConfig:
    """The frozen model that gives log-probs; its architecture is read from its checkpoint."""

    restore_from_path: str | None = None


@dataclass
class RolloutConfig:
    """The sampler."""

    engine: str = "embedded"
    tensor_model_parallel_size: int = 1  # 1: every rank decodes its own share on gathered weights
    batch_size: int = 128  # sequences a rank decodes at once
    temperature: float = 1.0
    top_p: float = 1.0  # anything but 1 is refused in training: the ratio would be biased
    top_k: int = 0
    max_new_tokens: int = 64


@dataclass
class Validation:
    """Held-out problems."""

    num_problems: int = 100
    samples: int = 4
    temperature: float = 0.6
    max_new_tokens: int | None = None  # null: as rollout


@dataclass
class Gate:
    """Checks before the first step."""

    max_log_prob_gap: float = 2e-3  # nats, mean absolute, sampler against trainer on the first rollouts
    # The same with model.fp8, whose sampler decodes in bf16. Elsewhere 0.07 was seen of a sound run in FP8
    # (radixark/miles#2722), 0.27 of a faulty one (#1678); objective.tis_cap corrects what is left.
    max_log_prob_gap_fp8: float = 0.1
    min_teacher_influence: float = 1e-3  # share of the gradient that the teacher moves
