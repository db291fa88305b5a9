"""RLKD inside NeMo-Aligner 0.7.0: its actor, its trainer and its reward server, with this package's objectives.

Versions are checked when a name is taken from here; nothing of NeMo is imported before.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlkd_nemo.aligner.actor import MegatronGPTRLKDActorModel
    from rlkd_nemo.aligner.client import GSRMRewardClient
    from rlkd_nemo.aligner.reward_server import GSRMRewardServer
    from rlkd_nemo.aligner.teacher import FrozenTeacher
    from rlkd_nemo.aligner.trainer import RLKDTrainer

_PLACES = {
    "MegatronGPTRLKDActorModel": "actor",
    "RLKDTrainer": "trainer",
    "FrozenTeacher": "teacher",
    "GSRMRewardServer": "reward_server",
    "GSRMRewardClient": "client",
}

__all__ = ["FrozenTeacher", "GSRMRewardClient", "GSRMRewardServer", "MegatronGPTRLKDActorModel", "RLKDTrainer"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
