"""`exp_manager`: where results go, and which checkpoints stay."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class CheckpointCallback:
    """Which checkpoints stay."""

    save_last: int = 2  # newest n; two, so that a damaged newest one has another before it
    save_top_k: int = 1  # best k by `monitor`
    monitor: str = "validation/accuracy"
    mode: str = "max"
    async_save: bool = False  # training goes on while a copy of its state is written


@dataclass
class ExpManager:
    """Where results go and who is told."""

    exp_dir: str = "results/rlkd"
    resume_if_exists: bool = True
    # DD:HH:MM:SS from the allocation's start; then save and exit 3. null: Slurm's end, if there is one.
    max_time_per_run: str | None = None
    stop_margin_s: float | None = None  # kept free before that end; null: learned from the steps and saves so far
    create_tensorboard_logger: bool = True
    create_wandb_logger: bool = False
    wandb_project: str = "rlkd_nemo"
    wandb_mode: str = "offline"  # offline, online or disabled
    audit_rollouts: int = 32  # rollouts a step written to rollouts/*.jsonl; -1: all
    checkpoint_callback_params: CheckpointCallback = field(default_factory=CheckpointCallback)
