"""Every YAML that comes with the package composes and breaks no rule."""

from pathlib import Path

import pytest

from rlkd_nemo.config.load import conf_directory, load, to_yaml
from rlkd_nemo.config.objectives import OBJECTIVES
from rlkd_nemo.config.rules import check
from rlkd_nemo.config.schema import TASKS

CONF = conf_directory()
RUNS = sorted(path.stem for path in CONF.glob("*.yaml"))
# aligner/ is no group: its files have NeMo-Aligner's keys (tests/aligner/test_examples.py composes them).
CHOICES = sorted(f"{p.parent.name}={p.stem}" for p in CONF.glob("*/*.yaml") if p.parent.name != "aligner")
# What a choice cannot know by itself.
GIVEN = {"task=prompts": ["task.path=problems.jsonl", "model.tokenizer.library=bytes"]}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_composes_and_breaks_no_rule(name, tmp_path):
    cfg = load(name)
    assert check(cfg) == []
    (tmp_path / "saved.yaml").write_text(to_yaml(cfg))
    assert load("saved", (), tmp_path) == cfg


@pytest.mark.parametrize("choice", CHOICES)
def test_a_group_choice_composes_and_breaks_no_rule(choice):
    assert check(load("rlkd_demo", [choice, *GIVEN.get(choice, [])])) == []


@pytest.mark.parametrize(("group", "known"), [("objective", OBJECTIVES), ("task", TASKS)])
def test_files_and_classes_of_a_group_are_the_same(group, known):
    assert sorted(path.stem for path in (CONF / group).glob("*.yaml")) == sorted(known)


def test_no_file_names_a_machines_path():
    for path in CONF.rglob("*.yaml"):
        for line in path.read_text().splitlines():
            value = line.partition(":")[2].strip()
            assert not Path(value).is_absolute(), f"{path.name}: {line}"
