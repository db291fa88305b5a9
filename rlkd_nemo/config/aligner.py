"""What RLKD adds to NeMo-Aligner's REINFORCE settings: the section `trainer.reinforce.rlkd` of its YAML.

Everything else keeps NeMo-Aligner's keys. Checked without torch and without NeMo.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlkd_nemo.config import objectives
from rlkd_nemo.config.objectives import KDRL, OBJECTIVES, TRRD, PolicyObjective
from rlkd_nemo.config.schema import Gate
from rlkd_nemo.config.tree import nearest
from rlkd_nemo.errors import ConfigError

SECTION = "trainer.reinforce.rlkd"
STDS = ("population", "sample", "none")


@dataclass
class AlignerRlkd:
    """RLKD inside NeMo-Aligner's trainer; rollouts per prompt, batch sizes and sampling stay where they were."""

    objective: dict[str, Any] = field(default_factory=lambda: {"name": "trrd"})  # name, and settings of that objective
    advantage_std: str = "population"  # of rewards within a group; sample, none
    epochs: int = 1  # passes over a rollout batch
    max_failed_fraction: float = 0.05  # of rollouts without a reward; more stop the run
    mask_unfinished: bool = False  # take responses without an end out of group statistics and loss
    drop_teacher_at_end: bool = False  # true: the teacher's text ends with another token than the student's
    min_teacher_influence: float = Gate.min_teacher_influence  # share of the gradient that the teacher moves


@dataclass
class RemoteRm:
    """What RLKD adds to `remote_rm`: NeMo-Aligner waits 100 minutes for a server and a week for a reply."""

    ready_timeout_s: float = 300.0  # for a server to be there with its model loaded
    # For one request, times that it is asked again included; then its rows have no reward. Shorter than the 30 minutes after
    # which Lightning's process groups give up: the other ranks wait in one of them.
    request_timeout_s: float = 1500.0


@dataclass
class RewardModel:
    """`remote_rm.reward_model`, where the client finds the server."""

    name: str
    ip: str
    port: int


@dataclass(frozen=True)
class Inference:
    """`inference`, where the reward server listens; the keys of NeMo-Aligner's inference_rm.yaml."""

    port: int = 5555
    model_name: str = "reward_model"
    max_queue_delay_microseconds: int = 2000  # how long a request waits for others of its width to be scored with it
    # Tokens that end a response beside the end of text; model.reinforce.sampling_params.end_strings of the actor
    end_strings: list[str] = field(default_factory=lambda: ["<|endoftext|>", "<extra_id_1>"])


def read(section: Mapping[str, Any] | DictConfig | None) -> tuple[AlignerRlkd, str, PolicyObjective]:
    """The section as typed settings, the objective's name and its settings.

    Raises: ConfigError with every problem found, each naming its key.
    """
    given = dict(OmegaConf.to_container(section, resolve=True) if isinstance(section, DictConfig) else section or {})  # type: ignore[arg-type]
    known = [f.name for f in dataclasses.fields(AlignerRlkd)]
    problems = [f"{SECTION}.{key} is no setting{nearest(str(key), known)}" for key in given if key not in known]
    if problems:
        raise ConfigError(problems)
    try:
        settings: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(AlignerRlkd), given))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{SECTION}.{error.full_key or ''}: {str(error).splitlines()[0]}") from error
    name, objective = _objective(settings.objective)
    problems = [f"{SECTION}.{problem}" for problem in objectives.problems(objective)]
    problems += _ranges(settings, objective)
    if problems:
        raise ConfigError(problems)
    return settings, name, objective


def read_remote(section: Mapping[str, Any] | DictConfig) -> tuple[RemoteRm, RewardModel, int | None]:
    """The section `remote_rm`: deadlines, address, and the width that requests are padded to (None: their own).

    Raises: ConfigError with every problem found, each naming its key.
    """
    given = dict(OmegaConf.to_container(section, resolve=True) if isinstance(section, DictConfig) else section)  # type: ignore[arg-type]
    own, model_keys = [f.name for f in dataclasses.fields(RemoteRm)], [f.name for f in dataclasses.fields(RewardModel)]
    known = [*own, "pad_to_length", "reward_model"]
    problems = [f"remote_rm.{key} is no setting{nearest(str(key), known)}" for key in given if key not in known]
    model = given.get("reward_model") or {}
    if not isinstance(model, Mapping):
        raise ConfigError([*problems, f"remote_rm.reward_model={model!r}; wanted a section of {', '.join(model_keys)}"])
    problems += [f"remote_rm.reward_model.{key} is no setting" for key in model if key not in model_keys]
    problems += [f"remote_rm.reward_model.{key} is missing" for key in model_keys if model.get(key) is None]
    width = given.get("pad_to_length")
    if width is not None and (isinstance(width, bool) or not isinstance(width, int) or width < 1):
        problems.append(f"remote_rm.pad_to_length={width!r} is out of range; wanted a number of tokens, or null")
    if problems:
        raise ConfigError(problems)
    try:
        remote: Any = OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(RemoteRm), {key: given[key] for key in own if key in given})
        )
        address: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RewardModel), model))
    except OmegaConfBaseException as error:
        raise ConfigError(f"remote_rm: {error.full_key or ''}: {str(error).splitlines()[0]}") from error
    for key in own:
        if not getattr(remote, key) > 0:
            problems.append(f"remote_rm.{key}={getattr(remote, key)} is out of range; wanted seconds > 0")
    if not 1 <= address.port <= 65535:
        problems.append(f"remote_rm.reward_model.port={address.port} is no port; wanted 1 to 65535")
    if problems:
        raise ConfigError(problems)
    return remote, address, width


def _objective(section: Mapping[str, Any]) -> tuple[str, PolicyObjective]:
    values = dict(section)
    name = values.pop("name", None)
    if name not in OBJECTIVES:
        raise ConfigError(
            f"{SECTION}.objective.name={name!r} is unknown; wanted one of {', '.join(OBJECTIVES)}"
            f"{nearest(str(name), OBJECTIVES)}"
        )
    known = objectives.keys(name)
    unknown = [key for key in values if key not in known]
    if unknown:
        raise ConfigError(
            [f"{SECTION}.objective.{key} is no setting of {name}{nearest(key, known)}" for key in unknown]
        )
    try:
        node = OmegaConf.structured(OBJECTIVES[name])
        OmegaConf.set_readonly(node, None)
        objective: Any = OmegaConf.to_object(OmegaConf.merge(node, values))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{SECTION}.objective.{error.full_key or ''}: {str(error).splitlines()[0]}") from error
    return name, objective


def _ranges(settings: AlignerRlkd, objective: PolicyObjective) -> Iterator[str]:
    if settings.advantage_std not in STDS:
        yield f"{SECTION}.advantage_std={settings.advantage_std!r} is unknown; wanted one of {', '.join(STDS)}"
    if settings.epochs < 1:
        yield f"{SECTION}.epochs={settings.epochs} is out of range; wanted at least 1"
    if not 0 <= settings.max_failed_fraction <= 1:
        yield f"{SECTION}.max_failed_fraction={settings.max_failed_fraction} is out of range; wanted 0 to 1"
    if objective.tis_cap is not None:
        yield f"{SECTION}.objective.tis_cap={objective.tis_cap}: NeMo's samplers report no log-probs; wanted null"
    if isinstance(objective, KDRL) and objective.kd_mask != "none":
        yield (
            f"{SECTION}.objective.kd_mask={objective.kd_mask} asks which responses are correct, which a reward server "
            "does not tell; wanted none"
        )
    if isinstance(objective, TRRD) and objective.alpha_steps < 0:
        yield f"{SECTION}.objective.alpha_steps={objective.alpha_steps} is out of range; wanted at least 0"


def batch_problems(trainer: Any, model: Any, data_parallel_size: int) -> list[str]:
    """What does not divide, and what RLKD refuses among NeMo-Aligner's own settings, each as a sentence with its key.

    Args:
        trainer: the section `trainer.reinforce`; model: the section `model`.
    """
    return [*_division(trainer, model, data_parallel_size), *_refused(trainer, model)]


def _division(trainer: Any, model: Any, dp: int) -> Iterator[str]:
    prompts, group = model.reinforce.num_rollout_samples, trainer.num_rollouts_per_prompt
    batch, micro = trainer.model_gbs, model.micro_batch_size
    forward, rows = model.reinforce.forward_micro_batch_size, prompts * group
    if group < 2:
        yield f"trainer.reinforce.num_rollouts_per_prompt={group}: a group needs at least 2 rollouts to compare"
    if batch % group:
        yield (
            f"model.global_batch_size={batch} is no multiple of trainer.reinforce.num_rollouts_per_prompt={group}: "
            "an optimizer update takes whole groups"
        )
    if rows % batch:
        yield (
            f"model.reinforce.num_rollout_samples={prompts} prompts x {group} rollouts = {rows} is no multiple of "
            f"model.global_batch_size={batch}"
        )
    if batch % (micro * dp):
        yield (
            f"model.global_batch_size={batch} is no multiple of model.micro_batch_size={micro} x {dp} data-parallel ranks"
        )
    for key, per_rank in (("rollout", prompts), ("val_rollout", model.reinforce.num_val_samples)):
        size = model.reinforce[f"{key}_micro_batch_size"]
        if per_rank % (size * dp):
            name = "num_rollout_samples" if key == "rollout" else "num_val_samples"
            yield (
                f"model.reinforce.{name}={per_rank} is no multiple of model.reinforce.{key}_micro_batch_size={size} x {dp} "
                "data-parallel ranks"
            )
    if rows % (forward * dp):
        yield (
            f"{rows} rollouts are no multiple of model.reinforce.forward_micro_batch_size={forward} x {dp} "
            "data-parallel ranks"
        )


def _refused(trainer: Any, model: Any) -> Iterator[str]:
    sampling = model.reinforce.sampling_params
    biased = {"use_greedy": bool(sampling.use_greedy), "top_k": sampling.top_k not in (0, None, -1)}
    biased |= {"top_p": sampling.top_p not in (0, 0.0, 1.0), "repetition_penalty": sampling.repetition_penalty != 1.0}
    for key in [key for key, bad in biased.items() if bad]:
        yield (
            f"model.reinforce.sampling_params.{key}={sampling[key]}: responses would not be samples of the policy whose "
            "log-probs are trained; wanted use_greedy False, top_k 0, top_p 1.0, repetition_penalty 1.0"
        )
    if not sampling.temperature > 0:
        yield f"model.reinforce.sampling_params.temperature={sampling.temperature} is out of range; wanted a number > 0"
    if trainer.initial_policy_kl_penalty:
        yield (
            f"trainer.reinforce.initial_policy_kl_penalty={trainer.initial_policy_kl_penalty} would change the reward; "
            f"RLKD adds the KL to the start model to the loss: wanted 0, and {SECTION}.objective.reference_kl"
        )
    if model.get("context_parallel_size", 1) != 1:
        yield f"model.context_parallel_size={model.context_parallel_size}: NeMo-Aligner's actors know none; wanted 1"
