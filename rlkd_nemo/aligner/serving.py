"""conf/aligner/inference_gsrm.yaml to a reward server: NeMo-Aligner's section `inference`, the rest in our own schema."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlkd_nemo import tasks, tokenizer
from rlkd_nemo.aligner.desk import RewardDesk
from rlkd_nemo.config import gsrm_rules, ranges, service_rules
from rlkd_nemo.config.aligner import Inference
from rlkd_nemo.config.schema import Config
from rlkd_nemo.config.tree import Setting, fill, flatten, nearest
from rlkd_nemo.errors import ConfigError
from rlkd_nemo.interfaces import Scorer, Task
from rlkd_nemo.rewards.blend import EmbeddedScorer
from rlkd_nemo.tasks.prompts import Prompts

if TYPE_CHECKING:
    from rlkd_nemo.aligner.reward_server import GSRMRewardServer

FILE = "conf/aligner/inference_gsrm.yaml"
SECTIONS = ("task", "reward", "gsrm")
SENTENCEPIECE = (
    "tokenizer.library=sentencepiece is not read here; save it once as a fast tokenizer, which keeps its ids, by transformers' "
    "LlamaTokenizerFast(vocab_file='tokenizer.model').save_pretrained(DIR), and set tokenizer.library=huggingface, "
    "tokenizer.type=DIR"
)


def read(tree: Mapping[str, Any]) -> tuple[Inference, Config]:
    """The file's sections as typed settings. Raises: ConfigError with every problem found."""
    inference, problems = _inference(tree.get("inference") or {})
    choices = ["inference", "tokenizer", *SECTIONS]
    problems += [f"{key} is no section{nearest(str(key), choices)}" for key in tree if key not in choices]
    settings = [Setting("objective.name", "grpo", FILE)]  # the schema wants one; a server optimizes nothing
    for name in SECTIONS:
        settings += flatten(tree.get(name) or {}, FILE, f"{name}.")
    tokenizer_section = tree.get("tokenizer") or {}
    if tokenizer_section.get("library") == "sentencepiece":
        problems.append(SENTENCEPIECE)
        tokenizer_section = {}
    settings += flatten(tokenizer_section, FILE, "model.tokenizer.")
    cfg, more = fill(settings)
    problems += more
    if cfg is not None:
        problems += [*ranges.problems(cfg), *gsrm_rules.problems(cfg), *service_rules.problems(cfg)]
    if cfg is None or problems:
        raise ConfigError(problems)
    return inference, cfg


def _inference(given: Mapping[str, Any]) -> tuple[Inference, list[str]]:
    known = [f.name for f in dataclasses.fields(Inference)]
    problems = [f"inference.{key} is no setting{nearest(str(key), known)}" for key in given if key not in known]
    node = OmegaConf.structured(Inference)
    OmegaConf.set_readonly(node, None)
    for key, value in given.items():
        try:
            if key in known:
                node[key] = value
        except OmegaConfBaseException as error:
            problems.append(f"inference.{key}={value!r}: {str(error).splitlines()[0]}")
    if not 1 <= node.port <= 65535:
        problems.append(f"inference.port={node.port} is no port; wanted 1 to 65535")
    inference: Any = OmegaConf.to_object(node)
    return inference, problems


def build_desk(cfg: Config, end_strings: Sequence[str] = ()) -> RewardDesk:
    """Raises: ConfigError for a task without a fixed list of problems; what tasks, tokenizers and scorers raise."""
    task = tasks.build(cfg.task)
    if not isinstance(task, Prompts):
        raise ConfigError("task.name must be prompts: a reward server looks problems up by the prompts it is sent")
    problems = [problem for split in task.problems.values() for problem in split]
    return RewardDesk(_scorer(cfg, task), problems, tokenizer.build(cfg.model.tokenizer, task), end_strings)


def build_server(tree: Mapping[str, Any]) -> GSRMRewardServer:
    """The server of a config file. Raises as `read` and `build_desk`."""
    from rlkd_nemo.aligner.reward_server import GSRMRewardServer

    inference, cfg = read(tree)
    address = dataclasses.asdict(inference)
    return GSRMRewardServer(build_desk(cfg, address.pop("end_strings")), **address)


def _scorer(cfg: Config, task: Task) -> Scorer:
    if cfg.gsrm.scorer == "service":
        # Late: the embedded scorer runs without the HTTP libraries.
        try:
            from rlkd_nemo.gsrm.service.build import scorer
        except ImportError as err:
            raise ConfigError(f"gsrm.scorer=service needs {err.name}: pip install 'rlkd_nemo[gsrm]'") from err

        return scorer(cfg, task)
    if cfg.gsrm.reference_store is None:
        raise ConfigError("gsrm.reference_store is not set; wanted a directory for the teacher paths taken apart")
    return EmbeddedScorer(task, cfg.reward, cfg.gsrm, Path(cfg.gsrm.reference_store))
