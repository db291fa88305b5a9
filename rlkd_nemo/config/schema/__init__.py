"""Every setting, its default and where the default comes from; NeMo's key names where NeMo has one.

Polymorphic groups carry `name`: `objective.name` picks a class of `objectives.py`, `task.name` one of `task.TASKS`,
and the other keys of that group are that class's fields. An unknown key is an error (load.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlkd_nemo.config.schema.data import (
    Data,
)
from rlkd_nemo.config.schema.demo import (
    Convert,
    Demo,
    GsrmDemo,
    Stage,
)
from rlkd_nemo.config.schema.exp_manager import (
    CheckpointCallback,
    ExpManager,
)
from rlkd_nemo.config.schema.gsrm import (
    LLM,
    Backend,
    Evaluation,
    Gsrm,
    GsrmServer,
    GsrmService,
    GsrmTraining,
    Label,
    Prefill,
)
from rlkd_nemo.config.schema.layout import (
    GsrmPart,
    Layout,
    TrainerPart,
    VllmPart,
)
from rlkd_nemo.config.schema.model import (
    Model,
    Optim,
    RopeScaling,
    Schedule,
    TokenizerConfig,
)
from rlkd_nemo.config.schema.rlkd import (
    Advantage,
    DynamicSampling,
    Gate,
    Overlong,
    Reward,
    Rlkd,
    RolloutConfig,
    TeacherConfig,
    Validation,
)
from rlkd_nemo.config.schema.task import (
    TASKS,
    ExpressionsTask,
    KnightsAndKnavesTask,
    MathTask,
    PromptsTask,
)
from rlkd_nemo.config.schema.trainer import (
    Loop,
    SFTLoop,
    Trainer,
)

__all__ = [
    "LLM",
    "TASKS",
    "Advantage",
    "Backend",
    "CheckpointCallback",
    "Config",
    "Convert",
    "Data",
    "Demo",
    "DynamicSampling",
    "Evaluation",
    "ExpManager",
    "ExpressionsTask",
    "Gate",
    "Gsrm",
    "GsrmDemo",
    "GsrmPart",
    "GsrmServer",
    "GsrmService",
    "GsrmTraining",
    "KnightsAndKnavesTask",
    "Label",
    "Layout",
    "Loop",
    "MathTask",
    "Model",
    "Optim",
    "Overlong",
    "Prefill",
    "PromptsTask",
    "Reward",
    "Rlkd",
    "RolloutConfig",
    "RopeScaling",
    "SFTLoop",
    "Schedule",
    "Stage",
    "TeacherConfig",
    "TokenizerConfig",
    "Trainer",
    "TrainerPart",
    "Validation",
    "VllmPart",
]


@dataclass
class Config:
    """The whole tree. `objective` and `task` are typed by their `name` (load.py)."""

    name: str = "rlkd"
    trainer: Trainer = field(default_factory=Trainer)
    exp_manager: ExpManager = field(default_factory=ExpManager)
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    task: Any = None
    objective: Any = None
    rlkd: Rlkd = field(default_factory=Rlkd)
    reward: Reward = field(default_factory=Reward)
    gsrm: Gsrm = field(default_factory=Gsrm)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    validation: Validation = field(default_factory=Validation)
    gate: Gate = field(default_factory=Gate)
    layout: Layout = field(default_factory=Layout)
    demo: Demo = field(default_factory=Demo)
    gsrm_demo: GsrmDemo = field(default_factory=GsrmDemo)
    convert: Convert = field(default_factory=Convert)
