"""`trainer`: ranks, precision, and how long."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class SFTLoop:
    """`trainer.sft`: how long, how often."""

    max_steps: int = 1000
    save_interval: int = 1000  # checkpoint after every k steps and after the last; 0: only after the last
    gradient_clip_val: float = 1.0  # global L2 norm; 0: no clipping (RLKD's release uses 0.2)


@dataclass
class Loop(SFTLoop):
    """`trainer.rlkd`: the same, with validation."""

    max_steps: int = 30
    save_interval: int = 10
    val_check_interval: int = 10  # validate before the first step, after every k and after the last; 0: never


@dataclass
class Trainer:
    """Ranks and precision."""

    num_nodes: int = 1
    devices: int | None = None  # ranks a node; null: tensor x pipeline x context parallel size / num_nodes, at least 2
    accelerator: str = "auto"  # auto: gpu where there is one, else cpu
    precision: str = "32"  # 32 or bf16 (fp32 master weights, fp32 log-probs)
    watchdog_s: float = 45.0  # longest time without progress (a micro-batch, a token) before the job ends with stacks
    heartbeat_s: float = 30.0  # longest time without a sign of life from a rank's process
    collective_timeout_s: float = 1800.0  # longest wait for a rank that still gets on, and longest save
    rlkd: Loop = field(default_factory=Loop)
    sft: SFTLoop = field(default_factory=SFTLoop)
