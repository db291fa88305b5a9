"""Rules between settings: each broken one is named, with the key to change; all of them at once."""

import pytest

from rlkd_nemo.config import memory
from rlkd_nemo.config.load import load
from rlkd_nemo.config.ranges import AT_LEAST_ONE, CHOICES, NOT_NEGATIVE, POSITIVE, SHARES
from rlkd_nemo.config.rules import check, enforce
from rlkd_nemo.errors import ConfigError

MANY = "model.num_attention_heads=8 model.num_query_groups=4 trainer.devices=8"

FULL = "model.activations_checkpoint_granularity=full model.activations_checkpoint_method="

STATES = "model.optim.use_precision_aware_optimizer="


def broken(*overrides):
    return check(load("rlkd_demo", overrides))


def test_the_demo_breaks_none():
    assert broken() == []


# One override set each, the keys that its sentence must name, and the value or bound it must tell.
CASES = [
    ("trainer.devices=3", "model.tensor_model_parallel_size", "3 ranks"),
    ("model.num_attention_heads=3 model.hidden_size=96", "model.num_attention_heads=3", "multiple of 2"),
    ("model.num_query_groups=1", "model.num_query_groups=1", "multiple of 2"),
    ("model.ffn_hidden_size=255", "model.ffn_hidden_size=255", "multiple of 2"),
    ("model.num_query_groups=3", "model.num_query_groups=3", "num_attention_heads=4"),
    ("model.hidden_size=98 model.num_attention_heads=4", "model.hidden_size=98", "model.kv_channels"),
    ("model.hidden_size=12", "3 channels", "model.kv_channels"),
    ("model.num_layers=3 model.pipeline_model_parallel_size=2 trainer.devices=4", "model.num_layers=3", "1, 3"),
    ("model.sequence_parallel=true model.tensor_model_parallel_size=1", "model.sequence_parallel=true", "size=1"),
    ("model.activations_checkpoint_granularity=fulll", "model.activations_checkpoint_granularity='fulll'", "mean full"),
    ("model.activations_checkpoint_method=blok", "model.activations_checkpoint_method='blok'", "uniform, block"),
    ("model.activations_checkpoint_method=block", "model.activations_checkpoint_method=block", "found null"),
    ("model.activations_checkpoint_granularity=selective model.activations_checkpoint_num_layers=1",
     "model.activations_checkpoint_num_layers=1", "found selective"),
    ("model.activations_checkpoint_granularity=full", "activations_checkpoint_method", "uniform and 1"),
    (FULL + "uniform model.activations_checkpoint_num_layers=3", "activations_checkpoint_num_layers=3", "not divide"),
    (FULL + "block model.activations_checkpoint_num_layers=5", "activations_checkpoint_num_layers=5", "4 layers"),
    ("model.optim.overlap_param_sync=true model.optim.overlap_grad_sync=true", "model.optim.overlap_param_sync=true",
     "model.optim.use_distributed_optimizer=true"),
    ("model.optim.overlap_param_sync=true model.optim.use_distributed_optimizer=true",
     "model.optim.overlap_param_sync=true", "model.optim.overlap_grad_sync=true"),
    ("model.optim.bucket_size=1000", "model.optim.bucket_size=1000", "model.optim.overlap_grad_sync=true"),
    ("model.virtual_pipeline_model_parallel_size=2", "model.virtual_pipeline_model_parallel_size=2", "2 or more stages"),
    ("model.pipeline_model_parallel_size=2 trainer.devices=4 model.virtual_pipeline_model_parallel_size=1",
     "model.virtual_pipeline_model_parallel_size=1", "or null"),
    ("model.pipeline_model_parallel_size=2 trainer.devices=4 model.num_layers=6 "
     "model.virtual_pipeline_model_parallel_size=2", "model.num_layers=6", "multiple of 4"),
    ("model.pipeline_model_parallel_size=2 trainer.devices=4 model.virtual_pipeline_model_parallel_size=2 "
     "model.optim.use_distributed_optimizer=true", "model.optim.use_distributed_optimizer", "exact together"),
    (STATES + "true", "model.optim.use_precision_aware_optimizer=true", "rlkd_nemo[fp8]"),
    (STATES + "true", "model.optim.use_precision_aware_optimizer=true", "use_distributed_optimizer=false"),
    (STATES + "true", "model.optim.use_precision_aware_optimizer=true", "trainer.precision=32"),
    ("model.optim.exp_avg_dtype=bf16", "model.optim.exp_avg_dtype=bf16", "use_precision_aware_optimizer=true"),
    ("model.optim.offload_states=true trainer.accelerator=cpu", "model.optim.offload_states=true", "CPU ranks"),
    ("rollout.tensor_model_parallel_size=4", "rollout.tensor_model_parallel_size=4", "neither 1"),
    ("model.tensor_model_parallel_size=1 data.global_batch_size=31", "data.global_batch_size=31", "multiple of 2"),
    ("rlkd.updates_per_batch=3", "rlkd.num_prompts=16", "1, 2, 4, 8, 16"),
    ("model.tensor_model_parallel_size=1 rlkd.num_prompts=3 rlkd.group_size=3 rlkd.updates_per_batch=1",
     "rlkd.group_size", "9 rollouts"),
    ("rlkd.group_size=1", "rlkd.group_size=1", "2 or more"),
    ("rollout.max_new_tokens=128", "model.encoder_seq_length=128", "no room for a prompt"),
    ("validation.max_new_tokens=200", "validation.max_new_tokens=200", "no room for a prompt"),
    ("model.rope_scaling.factor=4", "model.rope_scaling.factor=4", "type=none"),
    ("model.rope_scaling.type=llama3 model.rope_scaling.beta_fast=8", "model.rope_scaling.beta_fast=8", "type=llama3"),
    ("model.rope_scaling.type=llama3 model.rope_scaling.low_freq_factor=4", "model.rope_scaling.low_freq_factor=4.0",
     "model.rope_scaling.high_freq_factor=4.0"),
    ("model.rope_scaling.type=yarn model.rope_scaling.factor=0.5", "model.rope_scaling.factor=0.5", "1 or more"),
    ("rollout.top_p=0.9", "rollout.top_p=0.9", "probability mass"),
    ("rollout.top_k=50", "rollout.top_k=50", "probability mass"),
    ("rollout.temperature=0", "rollout.temperature=0.0", "> 0"),
    ("teacher.restore_from_path=null", "teacher.restore_from_path", "objective=trrd"),
    ("teacher.restore_from_path=null objective=opd", "teacher.restore_from_path", "objective=opd"),
    ("objective.reference_kl=0.1 model.restore_from_path=null", "objective.reference_kl=0.1", "model.restore_from_path"),
    ("objective.alpha=1.5", "objective.alpha=1.5", "[0, 1]"),
    ("model.optim.sched.warmup_steps=2000", "model.optim.sched.warmup_steps=2000", "max_steps"),
    ("model.optim.sched.decay_steps=2", "model.optim.sched.decay_steps=2", "warmup_steps=3"),
    ("model.optim.sched.warmup_ratio=0.1", "model.optim.sched.warmup_ratio=0.1", "warmup_steps=3"),
    ("model.optim.sched.min_lr=1", "model.optim.sched.min_lr=1.0", "model.optim.lr"),
    ("model.optim.betas=[0.9]", "model.optim.betas", "two numbers"),
    ("model.optim.lr=inf", "model.optim.lr=inf", "not finite"),
    ("gsrm.reference_mode=tree gsrm.alignment=monotone task.num_teacher_paths=2", "gsrm.alignment=monotone", "prefix"),
    ("gsrm.reference_mode=tree gsrm.norm=max task.num_teacher_paths=2", "gsrm.norm=max", "teacher"),
    ("gsrm.reference_mode=best", "task.num_teacher_paths=1", "2 or more"),
    ("reward.outcome=0 reward.structure=0 reward.format=0 reward.tag=0", "reward", "nothing to learn"),
    ("task=prompts model.tokenizer.library=bytes", "task.path", "JSON-lines"),
    ("task=prompts task.path=x", "model.tokenizer.library=task", "bytes or huggingface"),
    ("task=prompts task.path=x model.tokenizer.library=bytes task.test_fraction=0.9", "task.test_fraction=0.9", "below 1"),
    ("model.tokenizer.library=huggingface", "model.tokenizer.type", "directory"),
    ("model.tokenizer.type=x", "model.tokenizer.type", "library=huggingface"),
    ("rlkd.overlong.mode=soft rlkd.overlong.buffer_tokens=65", "rlkd.overlong.buffer_tokens=65", "max_new_tokens=64"),
    ("model.micro_batch_tokens=100", "model.micro_batch_tokens=100", "model.encoder_seq_length=128"),
    ("model.forward_micro_batch_tokens=1", "model.forward_micro_batch_tokens=1", "at least 128"),
    ("model.micro_batch_tokens=63 model.context_parallel_size=2", "model.micro_batch_tokens=63", "at least 64"),
    ("model.micro_batch_tokens=127 model.encoder_seq_length=127 model.sequence_parallel=true",
     "model.micro_batch_tokens=127", "at least 128"),
    ("model.encoder_seq_length=126 model.context_parallel_size=2", "model.encoder_seq_length=126", "multiple of 4"),
    ("model.context_parallel_size=2 trainer.devices=2", "model.context_parallel_size", "2 x 1 x 2 = 4"),
    ("model.context_parallel_size=2 trainer.devices=8 data.global_batch_size=31", "data.global_batch_size=31",
     "multiple of 2"),
    ("data.strategies=[]", "data.strategies", "at least one"),
    ("exp_manager.audit_rollouts=-2", "exp_manager.audit_rollouts=-2", "-1 (all)"),
]  # fmt: skip


@pytest.fixture
def no_transformer_engine(monkeypatch):
    monkeypatch.setattr(memory, "has_transformer_engine", lambda: False)


@pytest.mark.parametrize(("overrides", "key", "told"), CASES, ids=[case[0] for case in CASES])
def test_a_broken_rule_is_one_sentence(overrides, key, told, no_transformer_engine):
    found = broken(*overrides.split())
    matching = [sentence for sentence in found if key in sentence and told in sentence]
    assert len(matching) == 1, found


@pytest.mark.parametrize(
    "overrides",
    [
        "objective=grpo teacher.restore_from_path=null",
        "objective.alpha=1 teacher.restore_from_path=null",  # TRRD that is GRPO
        "objective=opd rlkd.group_size=1",
        "objective=opd reward.outcome=0 reward.structure=0 reward.format=0 reward.tag=0",
        "model.tensor_model_parallel_size=1 model.pipeline_model_parallel_size=1",
        "model.tensor_model_parallel_size=4 rollout.tensor_model_parallel_size=4 " + MANY,
        "model.kv_channels=32 model.hidden_size=98",
        "model.pipeline_model_parallel_size=2 trainer.devices=4 model.virtual_pipeline_model_parallel_size=2",
        "model.sequence_parallel=true",
        "model.optim.overlap_grad_sync=true model.optim.bucket_size=1000",
        "model.optim.use_distributed_optimizer=true model.optim.overlap_grad_sync=true model.optim.overlap_param_sync=true",
        "model.activations_checkpoint_granularity=selective",
        FULL + "block model.activations_checkpoint_num_layers=3",
        FULL + "uniform model.activations_checkpoint_num_layers=2",
        "rollout.max_new_tokens=127",
        "model.context_parallel_size=2 model.micro_batch_tokens=64 model.packed_sequences=true",
        "model.micro_batch_tokens=128 model.forward_micro_batch_tokens=4096",
        "gsrm.reference_mode=tree task.num_teacher_paths=2",
    ],
)
def test_what_is_allowed(overrides):
    assert broken(*overrides.split()) == []


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ("rlkd.num_prompts=3 rlkd.group_size=3 rlkd.updates_per_batch=1", "rlkd.group_size"),
        ("rollout.max_new_tokens=128", "rollout.max_new_tokens"),
        ("objective=trrd", "teacher.restore_from_path"),
        ("reward.outcome=0 reward.structure=0 reward.format=0 reward.tag=0", "reward"),
    ],
)
def test_supervised_training_is_asked_nothing_about_rollouts(overrides, key):
    cfg = load("sft_demo", overrides.split())
    assert any(key in sentence for sentence in check(cfg))
    assert check(cfg, supervised=True) == []


def test_supervised_training_has_no_sampling_to_offload_states_for():
    cfg = load("sft_demo", ["model.optim.offload_states=true"])
    assert check(cfg) == []
    (sentence,) = check(cfg, supervised=True)
    assert sentence.startswith("model.optim.offload_states=true") and "set it to false" in sentence
    with pytest.raises(ConfigError, match="supervised training, which samples none"):
        enforce(cfg, supervised=True)


def test_precision_aware_states_with_transformer_engine(monkeypatch):
    monkeypatch.setattr(memory, "has_transformer_engine", lambda: True)
    states = ["model.optim.use_precision_aware_optimizer=true", "model.optim.exp_avg_dtype=bf16"]
    assert broken(*states, "model.optim.use_distributed_optimizer=true", "trainer.precision=bf16") == []


@pytest.mark.parametrize("key", CHOICES)
def test_names_out_of_a_list(key):
    (sentence,) = [s for s in broken(f"{key}=zzz") if s.startswith(f"{key}='zzz'")]
    assert ", ".join(CHOICES[key]) in sentence


BOUNDS = [
    (f"{section}.{field}", value)
    for table, value in ((AT_LEAST_ONE, 0), (POSITIVE, 0), (NOT_NEGATIVE, -1), (SHARES, 2))
    for section, fields in table.items()
    for field in fields
]


@pytest.mark.parametrize(("key", "value"), BOUNDS)
def test_numbers_within_bounds(key, value):
    assert any(
        sentence.startswith(f"{key}={value}") and "out of range" in sentence for sentence in broken(f"{key}={value}")
    )


def test_all_problems_are_raised_together():
    cfg = load("rlkd_demo", ["rollout.top_p=0.5", "model.num_layers=0", "gsrm.judge=exakt"])
    with pytest.raises(ConfigError) as caught:
        enforce(cfg)
    assert len(caught.value.problems) == 3
    assert "did you mean exact?" in str(caught.value)
