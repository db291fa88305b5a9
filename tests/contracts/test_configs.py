"""Every YAML that comes with the package composes and breaks no rule."""

import operator
from pathlib import Path

import pytest

from rlkd_nemo import tasks
from rlkd_nemo.config.load import conf_directory, load, to_yaml
from rlkd_nemo.config.objectives import OBJECTIVES
from rlkd_nemo.config.rules import check
from rlkd_nemo.config.schema import TASKS
from rlkd_nemo.doctor.places import parameters

CONF = conf_directory()
RUNS = sorted(path.stem for path in CONF.glob("*.yaml"))
# aligner/ is no group: its files have NeMo-Aligner's keys (tests/aligner/test_examples.py composes them).
CHOICES = sorted(f"{p.parent.name}={p.stem}" for p in CONF.glob("*/*.yaml") if p.parent.name != "aligner")
# What a choice cannot know by itself.
FREE_TEXT = "model.tokenizer.library=bytes"
GIVEN = {
    "task=prompts": ["task.path=problems.jsonl", FREE_TEXT],
    "task=math": ["task.path=problems.jsonl", FREE_TEXT],
    "task=knights_and_knaves": [FREE_TEXT],
    "layout=gpu_4x8_gsrm_1x8": ["gsrm=vllm"],
    "layout=gpu_1x4_gsrm_1x2": ["gsrm=vllm"],
}
# Parameters of each published model, billions, and the rows of its vocabulary (model cards and config.json).
PUBLISHED = {
    "llama31_8b": (8.03, 128_256), "llama33_70b": (70.55, 128_256), "mistral_7b": (7.25, 32_768),
    "qwen25_7b": (7.62, 152_064), "qwen3_1p7b": (1.72, 151_936), "qwen3_8b": (8.19, 151_936),
    "qwen3_8b_base": (8.19, 151_936), "qwen3_32b": (32.76, 151_936), "r1_distill_qwen_7b": (7.62, 152_064),
}  # fmt: skip
# What copies of their config.json say (named in the files): layers, hidden, MLP, heads, groups, positions, rotary base, eps.
CONFIG_JSON = {
    "mistral_7b": (32, 4096, 14336, 32, 8, 32768, 1e6, 1e-5),
    "qwen3_8b_base": (36, 4096, 12288, 32, 8, 32768, 1e6, 1e-6),
    "r1_distill_qwen_7b": (28, 3584, 18944, 28, 4, 131072, 1e4, 1e-6),
}
# From the papers, one line a setting: (run, key, value, source).
PAPERS = [
    ("rlkd_70b_to_8b", "objective.alpha", 0.5, "2602.22495 section 4.1"),
    ("rlkd_70b_to_8b", "objective.clamp_value", 1.0, "2602.22495 appendix B"),
    ("rlkd_70b_to_8b", "reward.outcome", 3.0, "2505.16142 as reported"),
    ("rlkd_70b_to_8b", "reward.structure", 3.0, "2505.16142 as reported"),
    ("rlad_32b_to_8b_math", "model.optim.lr", 1e-6, "2602.22495 settings"),
    ("rlad_32b_to_8b_math", "rollout.max_new_tokens", 30720, "2602.22495 settings"),
    ("rlad_32b_to_8b_math", "reward.structure", 0.0, "2602.22495"),
    ("rlad_8b_to_1.7b_logic", "rlkd.group_size", 8, "2602.22495 settings"),
    ("rlad_8b_to_1.7b_logic", "objective.clip_low", 0.2, "2602.22495 settings"),
    ("rlad_8b_to_1.7b_logic", "objective.clip_high", 0.28, "2602.22495 settings"),
    ("rlad_8b_to_1.7b_logic", "rollout.max_new_tokens", 8192, "2602.22495 settings"),
    ("rlkd_7b_openr1", "rlkd.group_size", 4, "release, recipe"),
    ("rlkd_7b_openr1", "model.optim.lr", 5e-5, "release, recipe"),
    ("rlkd_7b_openr1", "objective.reference_kl", 0.04, "release, recipe"),
    ("rlkd_7b_openr1", "rollout.temperature", 0.7, "release, recipe"),
    ("rlkd_7b_openr1", "trainer.rlkd.gradient_clip_val", 0.2, "release, recipe"),
]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_composes_and_breaks_no_rule(name, tmp_path):
    cfg = load(name)
    assert check(cfg) == []
    (tmp_path / "saved.yaml").write_text(to_yaml(cfg))
    assert load("saved", (), tmp_path) == cfg


@pytest.mark.parametrize("choice", CHOICES)
def test_a_group_choice_composes_and_breaks_no_rule(choice):
    assert check(load("rlkd_demo", [choice, *GIVEN.get(choice, [])])) == []


@pytest.mark.parametrize(
    "model", [path.stem for path in CONF.glob("model/*.yaml") if path.stem not in ("tiny", "small")]
)
def test_sizes_add_up_to_the_published_number_of_parameters(model):
    billions, vocabulary = PUBLISHED[model]
    assert parameters(load("rlkd_demo", [f"model={model}"]).model, vocabulary) / 1e9 == pytest.approx(
        billions, rel=0.002
    )


@pytest.mark.parametrize("name", CONFIG_JSON)
def test_sizes_are_those_of_the_published_config_json(name):
    model = load("rlkd_demo", [f"model={name}"]).model
    assert CONFIG_JSON[name] == (
        model.num_layers, model.hidden_size, model.ffn_hidden_size, model.num_attention_heads, model.num_query_groups,
        model.max_position_embeddings, model.rotary_base, model.layernorm_epsilon,
    )  # fmt: skip
    assert model.rope_scaling.type == "none" and not model.share_embeddings_and_output_weights
    assert model.qk_layernorm == name.startswith("qwen3") and model.add_qkv_bias == name.startswith("r1_distill_qwen")


@pytest.mark.parametrize("run", sorted({run for run, *_ in PAPERS}))
def test_settings_from_the_papers_are_kept(run):
    cfg = load(run)
    for _, key, value, source in [entry for entry in PAPERS if entry[0] == run]:
        assert operator.attrgetter(key)(cfg) == value, f"{key}: {source}"
    # One update of 256 rollouts in RLAD's settings, 32 completions in RLKD's release.
    rollouts = cfg.rlkd.num_prompts * cfg.rlkd.group_size // cfg.rlkd.updates_per_batch
    assert rollouts == (32 if run == "rlkd_7b_openr1" else 256)


def test_overrides_as_nemo_users_type_them():
    cfg = load("rlkd_70b_to_8b", ["++model.optim.lr=2e-6", "trainer.num_nodes=8", "teacher=r1_distill_llama_70b"])
    assert (cfg.model.optim.lr, cfg.trainer.num_nodes) == (2e-6, 8)
    assert cfg.teacher.restore_from_path == "models/DeepSeek-R1-Distill-Llama-70B" and check(cfg) == []


@pytest.mark.parametrize(("group", "known"), [("objective", OBJECTIVES), ("task", TASKS)])
def test_files_and_classes_of_a_group_are_the_same(group, known):
    assert sorted(path.stem for path in (CONF / group).glob("*.yaml")) == sorted(known)


def test_training_a_gsrm_wants_no_file_beside_its_rows_and_its_model():
    # The job builds the task for the tokenizer's sake: one of a file would have to be there.
    tasks.build(load("gsrm_7b").task)


def test_no_file_names_a_machines_path():
    for path in CONF.rglob("*.yaml"):
        for line in path.read_text().splitlines():
            value = line.partition(":")[2].strip()
            assert not Path(value).is_absolute(), f"{path.name}: {line}"
