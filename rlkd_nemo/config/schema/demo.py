"""`demo`, `gsrm_demo`, `convert`: commands with settings of their own."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Stage:
    """One supervised stage of the quickstart: its length, learning rate and demonstrations."""

    steps: int = 800
    lr: float = 3e-3
    schedule: str = "constant"
    strategies: list[str] = field(default_factory=lambda: ["post", "random"])
    noise: float = 0.0
    num_paths: int | None = None


@dataclass
class Demo:
    """The quickstart: a base model, then the teacher and the student from it, made in minutes on two cores.

    The student can look letters up but follows another order and carries a systematic error: able, but wrong.
    """

    base: Stage = field(default_factory=Stage)
    teacher: Stage = field(default_factory=lambda: Stage(steps=400, lr=2e-3, schedule="linear", strategies=["post"]))
    student: Stage = field(
        default_factory=lambda: Stage(steps=100, lr=1e-3, strategies=["right", "random"], noise=0.35, num_paths=400)
    )
    student_from: str = "base"  # base or teacher
    min_teacher_accuracy: float = 0.9
    max_teacher_retrains: int = 2  # with a derived seed; then refuse
    retrain_within_s: float = 400.0  # no retraining is begun later than so many seconds after the start
    test_problems: int = 200
    test_samples: int = 8


@dataclass
class GsrmDemo:
    """`examples/demo_gsrm.py`: a tiny GSRM, its training data, and what it must reach."""

    vllm_python: str | None = None  # a Python that has vLLM; null: environment variable RLKD_VLLM_PYTHON
    startup_s: float = 400.0  # for vLLM to be ready; 45 to 80 s on two idle cores
    num_rows: int = 10_000  # to train on
    held_out_rows: int = 300  # to measure on, of other problems
    altered: float = (
        0.4  # share of training texts with steps that make no sense together, as students in training write
    )
    cut: float = 0.05  # share of training texts that break off
    train_config: str = "gsrm_tiny"  # config of examples/train_gsrm.py
    training: list[str] = field(default_factory=list)  # overrides of it
    min_parse_rate: float = 0.95
    min_step_f1: float = 0.9
    min_agreement: float = 0.95  # share of the run's rollouts with the same reward as by rule


@dataclass
class Convert:
    """`examples/convert_checkpoint.py`: a Hugging Face directory to a checkpoint, or the other way round."""

    source: str | None = None
    target: str | None = None
    family: str | None = None  # to Hugging Face: a name of engine/model/families; null: the plainest that fits
