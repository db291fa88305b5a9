"""The plugin's own defaults as Hydra configs, which the files of conf/aligner begin with: a value is written down once.

Plain trees and not types, so that a mistyped key reaches our own messages.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from hydra.core.config_store import ConfigStore

from rlkd_nemo.config.aligner import AlignerRlkd, Inference, RemoteRm
from rlkd_nemo.config.schema import Gsrm, PromptsTask, Reward, TokenizerConfig

# Sections of `gsrm` that a reward server reads nothing of.
ELSEWHERE = ("server", "prefill", "training", "label", "evaluation")


def actor() -> dict[str, Any]:
    """What gpt_rlkd_actor.yaml starts from."""
    return {"trainer": {"reinforce": {"rlkd": asdict(AlignerRlkd())}}, "remote_rm": asdict(RemoteRm())}


def server() -> dict[str, Any]:
    """What inference_gsrm.yaml starts from."""
    gsrm = {key: value for key, value in asdict(Gsrm()).items() if key not in ELSEWHERE}
    task = {"name": "prompts", **asdict(PromptsTask())}  # the only one that is looked up by its prompts
    tokenizer = asdict(TokenizerConfig())
    return {
        "inference": asdict(Inference()), "tokenizer": tokenizer, "task": task, "reward": asdict(Reward()), "gsrm": gsrm,
    }  # fmt: skip


def register() -> None:
    """Make both known to Hydra; a script calls it before its main function runs."""
    for name, node in (("rlkd_actor", actor()), ("gsrm_server", server())):
        ConfigStore.instance().store(name=name, node=node, package="_global_")
