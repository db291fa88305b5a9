"""Loading: overrides, typed groups, and one sentence for everything that does not fit."""

import pytest

from rlkd_nemo.config.load import load, to_yaml
from rlkd_nemo.config.objectives import GRPO, KDRL, TRRD
from rlkd_nemo.config.schema import Config, ExpressionsTask, PromptsTask
from rlkd_nemo.errors import ConfigError


def problems(*overrides, name="rlkd_demo", directory=None):
    with pytest.raises(ConfigError) as caught:
        load(name, overrides, directory)
    return caught.value.problems


def test_group_choices_and_dotted_values_reach_the_typed_tree():
    cfg = load("rlkd_demo", ["objective.alpha=0.3", "model.pipeline_model_parallel_size=2", "model=small"])
    assert isinstance(cfg, Config)
    assert cfg.objective == TRRD(alpha=0.3, dual_clip=3.0)  # dual_clip from the file, the rest from the schema
    assert cfg.model.pipeline_model_parallel_size == 2
    assert cfg.model.num_layers == 4  # from model/small.yaml
    assert isinstance(cfg.task, ExpressionsTask)
    assert cfg.model.optim.lr == 2e-4  # YAML 1.1 would read 2e-4 as text


def test_devices_follow_the_layout_where_none_are_given():
    # tensor parallel size 2 in the file
    assert load("rlkd_demo", []).trainer.devices == 2
    assert load("rlkd_demo", ["model.context_parallel_size=3"]).trainer.devices == 6
    both = ["model.context_parallel_size=2", "model.pipeline_model_parallel_size=2", "trainer.num_nodes=2"]
    assert load("rlkd_demo", both).trainer.devices == 4


def test_name_types_its_group():
    assert isinstance(load("rlkd_demo", ["objective=grpo"]).objective, GRPO)
    assert load("rlkd_demo", ["objective=kdrl", "objective.beta=0.3"]).objective == KDRL(beta=0.3, dual_clip=3.0)
    assert load("rlkd_demo", ["task=prompts", "task.path=x.jsonl"]).task == PromptsTask(path="x.jsonl")


def test_ways_to_write_an_override():
    plain = load("rlkd_demo", ["trainer.rlkd.max_steps=7", "data.strategies=[post,right]", "objective.dual_clip=null"])
    assert plain.trainer.rlkd.max_steps == 7
    assert plain.data.strategies == ["post", "right"]
    assert plain.objective.dual_clip is None
    assert load("rlkd_demo", ["+trainer.rlkd.max_steps=7"]).trainer.rlkd.max_steps == 7  # as NeMo users type it
    nested = load("rlkd_demo", ["model.optim={lr: 1e-5, betas: [0.8, 0.9]}"])
    assert (nested.model.optim.lr, nested.model.optim.betas, nested.model.optim.eps) == (1e-5, [0.8, 0.9], 1e-8)
    assert load("rlkd_demo", ["teacher.restore_from_path=${exp_manager.exp_dir}/t"]).teacher.restore_from_path == (
        "results/rlkd_demo/t"
    )


def test_unknown_keys_name_the_nearest_and_where_they_came_from():
    assert problems("model.num_layer=3") == [
        "model.num_layer (override 'model.num_layer=3') is no setting; did you mean model.num_layers?"
    ]
    assert "did you mean model.optim.lr?" in problems("optim.lr=1")[0]  # section forgotten
    assert "did you mean trainer.rlkd.max_steps?" in problems("trainer.max_step=1")[0]
    assert "is no setting of objective=trrd; it belongs to objective=kdrl" in problems("objective.beta=1")[0]
    assert "did you mean objective.alpha?" in problems("objective.alpa=1")[0]
    assert "--cfg job" in problems("zebra=1")[0]  # nothing near


def test_every_problem_at_once():
    found = problems("model.num_layer=3", "model.hidden_size=wide", "trainer=2", "rlkd.groups=1")
    assert len(found) == 4
    assert found[1] == "model.hidden_size='wide' (override 'model.hidden_size=wide') has the wrong type; wanted int"
    assert "trainer=2" in found[2] and "is a section" in found[2]


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("model.num_layers=2.5", "wanted int"),
        ("model.num_layers=null", "wanted int"),
        ("model.optim.lr=fast", "wanted float"),
        ("exp_manager.resume_if_exists=perhaps", "wanted bool"),
        ("data.strategies=post", r"wanted list[str]"),
        ("objective.dual_clip=high", "wanted float or null"),
    ],
)
def test_wrong_types(override, wanted):
    assert wanted in problems(override)[0]


def test_wrong_choices_list_the_choices():
    found = problems("objective=reduce")[0]
    assert "grpo, kdrl, opd, trrd" in found
    assert "did you mean trrd?" in problems("objective=trd")[0]
    assert "objective.name='ppo'" in problems("objective.name=ppo")[0]
    found = problems(name="rlkd_dem")[0]
    assert "rlkd_demo, sft_demo" in found and "did you mean rlkd_demo?" in found


def test_unreadable_overrides():
    assert "wanted key=value" in problems("model.num_layers")[0]
    assert "wanted key=value" in problems("a=b=c")[0]
    assert "give it null" in problems("~model.optim")[0]
    assert "only key=value" in problems("model.num_layers=1,2")[0]  # a sweep
    assert "nope" in problems("exp_manager.exp_dir=${nope}")[0]


def test_a_users_folder_reaches_the_packages_groups(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "defaults: [{objective: opd}, {task: expressions}, _self_]\nmodel:\n  num_layer: 2\ntrainer:\n"
    )
    found = problems(name="mine", directory=tmp_path)
    assert "model.num_layer (mine.yaml) is no setting; did you mean model.num_layers?" in found
    assert any(line.startswith("trainer=None (mine.yaml) is a section") for line in found)  # an empty section


def test_the_file_that_set_a_key_is_named(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "wide.yaml").write_text("hiden_size: 7\n")
    (tmp_path / "mine.yaml").write_text("defaults: [{objective: opd}, {task: expressions}, {model: wide}, _self_]\n")
    (found,) = problems(name="mine", directory=tmp_path)
    assert found.startswith("model.hiden_size (model/wide.yaml) is no setting; did you mean model.hidden_size?")


def test_broken_files(tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    (tmp_path / "lost.yaml").write_text("defaults: [{objective: nothing}]\n")
    (tmp_path / "empty.yaml").write_text("")
    assert "no valid YAML" in problems(name="bad", directory=tmp_path)[0]
    found = problems(name="lost", directory=tmp_path)[0]
    assert "objective/nothing" in found and "lost.yaml" in found
    found = problems(name="empty", directory=tmp_path)
    assert found[0].startswith("objective.name is not set") and found[1].startswith("task.name is not set")
    assert "no such folder" in problems(name="x", directory=tmp_path / "away")[0]


def test_the_saved_yaml_loads_into_an_equal_config(tmp_path):
    cfg = load("rlkd_demo", ["objective=kdrl", "objective.beta=0.3", "trainer.precision=32", "model.optim.eps=1e-9"])
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    assert load("config", (), tmp_path) == cfg
