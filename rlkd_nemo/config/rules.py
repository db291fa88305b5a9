"""What must hold between settings: every broken rule at once, each with what was found, wanted and the key to change.

Needs no torch and no files, so that a login node can run it. Not covered: whether paths exist, whether a problem fits
into the context (known when it is tokenised), and what a task makes of its difficulty and strategies.
"""

from __future__ import annotations

from collections.abc import Iterator

from rlkd_nemo.config import (
    batches,
    gsrm_rules,
    layout_rules,
    memory,
    monitor,
    objectives,
    precision,
    ranges,
    service_rules,
    task_rules,
)
from rlkd_nemo.config.schema import Config, ExpressionsTask, Model, RopeScaling, Stage
from rlkd_nemo.errors import ConfigError


def check(cfg: Config, *, supervised: bool = False) -> list[str]:
    """Every broken rule as one sentence; empty when the config can run.

    Args: supervised: for a command that samples nothing (train_sft, train_gsrm), which reads no setting of rollouts.
    """
    parts = [
        ranges.problems,
        _schedule,
        _layout,
        memory.problems,
        precision.problems,
        _model,
        _batches,
        gsrm_rules.problems,
        service_rules.problems,
        layout_rules.problems,
        _task,
        monitor.problems,
    ]
    parts += [_supervised] if supervised else [precision.sampler, _objective, _sampling, _rollout_batches, _rewards]
    found = [problem for part in parts for problem in part(cfg)]
    return list(dict.fromkeys(found))


def enforce(cfg: Config, *, supervised: bool = False) -> None:
    """Raises ConfigError with every broken rule of `check`."""
    problems = check(cfg, supervised=supervised)
    if problems:
        raise ConfigError(problems)


def _supervised(cfg: Config) -> Iterator[str]:
    if cfg.model.optim.offload_states:
        yield (
            "model.optim.offload_states=true moves optimizer states to host memory while rollouts are sampled, found "
            "supervised training, which samples none; set it to false"
        )


def _schedule(cfg: Config) -> Iterator[str]:
    sched = cfg.model.optim.sched
    if sched.decay_steps is not None and sched.warmup_steps > sched.decay_steps:
        yield (
            f"model.optim.sched.warmup_steps={sched.warmup_steps} is longer than model.optim.sched.decay_steps="
            f"{sched.decay_steps}; the learning rate would never reach model.optim.lr"
        )
    updates = cfg.trainer.rlkd.max_steps * cfg.rlkd.updates_per_batch * cfg.rlkd.epochs
    longest = max(updates, cfg.trainer.sft.max_steps)
    if sched.warmup_steps >= longest:
        yield (
            f"model.optim.sched.warmup_steps={sched.warmup_steps} leaves nothing of {updates} updates of trainer.rlkd or "
            f"{cfg.trainer.sft.max_steps} of trainer.sft; lower it or raise max_steps"
        )
    if sched.warmup_ratio is not None and sched.warmup_steps:
        yield (
            f"model.optim.sched.warmup_ratio={sched.warmup_ratio} and warmup_steps={sched.warmup_steps} both say how long the "
            "warm-up is; wanted one of them"
        )
    if sched.min_lr > cfg.model.optim.lr:
        yield f"model.optim.sched.min_lr={sched.min_lr} is above model.optim.lr={cfg.model.optim.lr}; lower it"


def _layout(cfg: Config) -> Iterator[str]:
    model, trainer = cfg.model, cfg.trainer
    tensor, pipeline = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
    context = model.context_parallel_size
    devices = trainer.devices or 0
    if min(tensor, pipeline, context, trainer.num_nodes, devices) < 1:
        return
    world = trainer.num_nodes * devices
    if world % (tensor * pipeline * context):
        yield (
            f"trainer.num_nodes x trainer.devices = {world} ranks is no multiple of model.tensor_model_parallel_size x "
            f"model.pipeline_model_parallel_size x model.context_parallel_size = {tensor} x {pipeline} x {context} = "
            f"{tensor * pipeline * context}; "
            f"change trainer.devices or a parallel size"
        )
    for key in ("num_attention_heads", "num_query_groups", "ffn_hidden_size", "hidden_size"):
        value = getattr(model, key)
        if value % tensor:
            sizes = ", ".join(str(n) for n in range(1, tensor + 1) if value % n == 0)
            yield (
                f"model.{key}={value} does not divide by model.tensor_model_parallel_size={tensor}; "
                f"wanted a multiple of {tensor}, or a tensor parallel size of {sizes}"
            )
    if model.num_layers % pipeline:
        sizes = ", ".join(str(n) for n in range(1, model.num_layers + 1) if model.num_layers % n == 0)
        yield (
            f"model.num_layers={model.num_layers} does not divide by model.pipeline_model_parallel_size={pipeline}; "
            f"wanted one of {sizes}, or other num_layers"
        )
    yield from _virtual_pipeline(model)
    sampling = cfg.rollout.tensor_model_parallel_size
    if sampling not in (1, tensor):
        yield (
            f"rollout.tensor_model_parallel_size={sampling} is neither 1 (each rank decodes its share) nor "
            f"model.tensor_model_parallel_size={tensor}; choose one of the two"
        )


def _virtual_pipeline(model: Model) -> Iterator[str]:
    virtual, pipeline = model.virtual_pipeline_model_parallel_size, model.pipeline_model_parallel_size
    if virtual is None or virtual < 1:
        return  # the second is named by its range
    key = f"model.virtual_pipeline_model_parallel_size={virtual}"
    if virtual == 1 or pipeline == 1:
        yield (
            f"{key} with model.pipeline_model_parallel_size={pipeline} is no virtual pipeline; wanted 2 or more pieces on "
            f"each of 2 or more stages, or null"
        )
    if model.num_layers % pipeline == 0 and model.num_layers % (pipeline * virtual):
        yield (
            f"model.num_layers={model.num_layers} does not divide by {key} x model.pipeline_model_parallel_size={pipeline}; "
            f"wanted a multiple of {pipeline * virtual} layers"
        )
    for name in ("use_distributed_optimizer", "overlap_grad_sync", "overlap_param_sync", "offload_states"):
        if getattr(model.optim, name):
            yield f"model.optim.{name}=true with {key}: the two have not been shown to be exact together; give up one"


def _model(cfg: Config) -> Iterator[str]:
    model = cfg.model
    heads, groups = model.num_attention_heads, model.num_query_groups
    if min(heads, groups) < 1:
        return
    if heads % groups:
        yield f"model.num_query_groups={groups} does not divide model.num_attention_heads={heads}"
    if model.kv_channels is None and model.hidden_size % heads:
        yield (
            f"model.hidden_size={model.hidden_size} does not divide by model.num_attention_heads={heads}; "
            f"change one, or give the size of a head in model.kv_channels"
        )
    head = model.kv_channels if model.kv_channels is not None else model.hidden_size // heads
    if head % 2:
        yield f"a head of {head} channels is odd, which rotary positions cannot split; change model.kv_channels or hidden_size"
    yield from _rope(model)
    if model.tokenizer.library == "huggingface" and not model.tokenizer.type:
        yield "model.tokenizer.type is not set; model.tokenizer.library=huggingface wants the tokenizer's directory there"
    if model.tokenizer.library != "huggingface" and model.tokenizer.type is not None:
        yield (
            f"model.tokenizer.type={model.tokenizer.type!r} is read by library=huggingface only, "
            f"found model.tokenizer.library={model.tokenizer.library}; remove one"
        )


_ROPE_KEYS = {
    "none": (),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "truncate",
    ),
}  # fmt: skip


def _rope(model: Model) -> Iterator[str]:
    scaling = model.rope_scaling
    read = _ROPE_KEYS.get(scaling.type)
    if read is None:
        return  # named by its range
    for key, value in vars(scaling).items():
        if key != "type" and key not in read and value != getattr(RopeScaling(), key):
            yield (
                f"model.rope_scaling.{key}={value} is not read by model.rope_scaling.type={scaling.type}; remove it, or "
                f"choose the type it belongs to"
            )
    if scaling.factor < 1:
        yield f"model.rope_scaling.factor={scaling.factor} would shorten the context; wanted 1 or more"
    for low, high, owner in (("low_freq_factor", "high_freq_factor", "llama3"), ("beta_slow", "beta_fast", "yarn")):
        if scaling.type == owner and getattr(scaling, low) >= getattr(scaling, high):
            yield (
                f"model.rope_scaling.{low}={getattr(scaling, low)} is not below model.rope_scaling.{high}="
                f"{getattr(scaling, high)}; there is nothing to blend between them"
            )


def _objective(cfg: Config) -> Iterator[str]:
    yield from objectives.problems(cfg.objective)
    name = type(cfg.objective).__name__.lower()
    if objectives.needs_teacher(cfg.objective) and not cfg.teacher.restore_from_path:
        yield (
            f"teacher.restore_from_path is not set, but objective={name} learns from a teacher's log-probs; "
            f"name the teacher's checkpoint, or choose objective=grpo"
        )
    if cfg.objective.reference_kl > 0 and not cfg.model.restore_from_path:
        yield (
            f"objective.reference_kl={cfg.objective.reference_kl} pulls towards the start weights, but "
            f"model.restore_from_path is not set: that would be random weights; set it, or reference_kl to 0"
        )
    if name != "opd" and cfg.rlkd.group_size < 2:
        yield (
            f"rlkd.group_size={cfg.rlkd.group_size} leaves no group to compare with, but objective={name} takes its "
            f"advantages from groups; wanted 2 or more"
        )


def _sampling(cfg: Config) -> Iterator[str]:
    rollout = cfg.rollout
    for key, off in (("top_p", 1.0), ("top_k", 0)):
        value = getattr(rollout, key)
        if value != off:
            yield (
                f"rollout.{key}={value} truncates the distribution; wanted {off}: tokens would come from another "
                f"distribution than the policy's, and every ratio would be off by the probability mass that was kept"
            )
    limits = {
        "rollout.max_new_tokens": rollout.max_new_tokens,
        "validation.max_new_tokens": cfg.validation.max_new_tokens,
    }
    for key, tokens in limits.items():
        if tokens is not None and tokens >= cfg.model.encoder_seq_length:
            yield (
                f"{key}={tokens} leaves no room for a prompt in model.encoder_seq_length="
                f"{cfg.model.encoder_seq_length} (prompt + response); lower the first or raise the second"
            )
    if cfg.rlkd.overlong.mode == "soft" and cfg.rlkd.overlong.buffer_tokens > rollout.max_new_tokens:
        yield (
            f"rlkd.overlong.buffer_tokens={cfg.rlkd.overlong.buffer_tokens} is longer than rollout.max_new_tokens="
            f"{rollout.max_new_tokens}; wanted at most that"
        )


def _batches(cfg: Config) -> Iterator[str]:
    yield from batches.problems(cfg)
    replicas = _replicas(cfg)
    if replicas and cfg.data.global_batch_size % replicas:
        yield (
            f"data.global_batch_size={cfg.data.global_batch_size} does not divide over {replicas} data-parallel ranks "
            f"(ranks / (tensor x pipeline x context)); wanted a multiple of {replicas}"
        )


def _replicas(cfg: Config) -> int:
    """Data-parallel ranks; 0 where the ranks make no layout, which `_layout` names."""
    model = cfg.model
    ranks = model.tensor_model_parallel_size * model.pipeline_model_parallel_size * model.context_parallel_size
    world = cfg.trainer.num_nodes * (cfg.trainer.devices or 0)
    return world // ranks if min(ranks, world) >= 1 and world % ranks == 0 else 0


def _rollout_batches(cfg: Config) -> Iterator[str]:
    rlkd, replicas = cfg.rlkd, _replicas(cfg)
    if min(rlkd.updates_per_batch, rlkd.num_prompts) < 1:
        return  # named by their range
    if rlkd.num_prompts % rlkd.updates_per_batch:
        sizes = ", ".join(str(n) for n in range(1, rlkd.num_prompts + 1) if rlkd.num_prompts % n == 0)
        yield (
            f"rlkd.num_prompts={rlkd.num_prompts} does not divide into rlkd.updates_per_batch={rlkd.updates_per_batch} "
            f"updates of whole groups; wanted one of {sizes}"
        )
    elif replicas:
        rows = rlkd.num_prompts // rlkd.updates_per_batch * rlkd.group_size
        if rows % replicas:
            yield (
                f"rlkd.num_prompts x rlkd.group_size / rlkd.updates_per_batch = {rows} rollouts an update does not divide "
                f"over {replicas} data-parallel ranks; wanted a multiple of {replicas}"
            )


def _rewards(cfg: Config) -> Iterator[str]:
    reward, gsrm = cfg.reward, cfg.gsrm
    name = type(cfg.objective).__name__.lower()
    if name != "opd" and reward.outcome + reward.structure + reward.format + reward.tag <= 0:
        yield f"all weights under reward are 0, so that objective={name} has nothing to learn from; raise one"
    if gsrm.reference_mode == "tree" and gsrm.alignment == "monotone":
        yield (
            "gsrm.reference_mode=tree walks a tree from its root, which gsrm.alignment=monotone does not; "
            "wanted alignment=prefix, or reference_mode=best"
        )
    if gsrm.reference_mode == "tree" and gsrm.norm == "max":
        yield "gsrm.norm=max compares lengths with one reference, which gsrm.reference_mode=tree does not have; wanted teacher"
    if gsrm.reference_mode != "first" and isinstance(cfg.task, ExpressionsTask) and cfg.task.num_teacher_paths < 2:
        yield (
            f"gsrm.reference_mode={gsrm.reference_mode} chooses among references, but task.num_teacher_paths="
            f"{cfg.task.num_teacher_paths} gives one; wanted 2 or more"
        )


def _task(cfg: Config) -> Iterator[str]:
    stages: dict[str, Stage] = {name: getattr(cfg.demo, name) for name in ("base", "teacher", "student")}
    strategies = {"data": cfg.data.strategies} | {f"demo.{name}": stage.strategies for name, stage in stages.items()}
    for name, listed in strategies.items():
        if not listed:
            yield f"{name}.strategies=[] is empty; wanted at least one order of the worked paths"
    if isinstance(cfg.task, ExpressionsTask):
        if cfg.task.modulus < 2:
            yield f"task.modulus={cfg.task.modulus} is out of range; wanted a whole number >= 2"
        if cfg.task.num_teacher_paths < 1:
            yield f"task.num_teacher_paths={cfg.task.num_teacher_paths} is out of range; wanted a whole number >= 1"
        if cfg.task.style not in ranges.STYLES:
            yield f"task.style={cfg.task.style!r} is unknown; wanted one of {', '.join(ranges.STYLES)}"
    yield from task_rules.problems(cfg)
