"""What the guides name exists: files, make targets and settings."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rlkd_nemo.config import aligner_groups
from rlkd_nemo.config.aligner import AlignerRlkd
from rlkd_nemo.config.load import load
from rlkd_nemo.config.objectives import OBJECTIVES
from rlkd_nemo.config.rules import check
from rlkd_nemo.config.schema import TASKS, Config
from rlkd_nemo.errors import ConfigError
from rlkd_nemo.launch.cli import parser

ROOT = Path(__file__).resolve().parents[2]
GUIDES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "containers" / "README.md"]
FOLDERS = ("examples", "slurm", "containers", "conf", "benchmarks", "tests", "rlkd_nemo", "constraints", "docs")


def settings(cls, prefix=""):
    """Every dotted key of a settings class, sections included."""
    for field in dataclasses.fields(cls):
        key = f"{prefix}{field.name}"
        yield key
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else None
        if dataclasses.is_dataclass(default):
            yield from settings(type(default), f"{key}.")


KEYS = set(settings(Config))
for group, classes in (("objective", OBJECTIVES), ("task", TASKS)):
    KEYS |= {key for cls in classes.values() for key in settings(cls, f"{group}.")}
SECTIONS = {key for key in KEYS if "." not in key}


def keys_of(tree, prefix=""):
    """The same of a YAML file."""
    for name, value in tree.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from keys_of(value, f"{prefix}{name}.")


# NeMo-Aligner's own settings, and below `rlkd` ours.
ALIGNER = {"trainer.reinforce.rlkd", *settings(AlignerRlkd, "trainer.reinforce.rlkd.")}
ALIGNER |= {key for cls in OBJECTIVES.values() for key in settings(cls, "trainer.reinforce.rlkd.objective.")}
ALIGNER |= {*keys_of(aligner_groups.actor()), *keys_of(aligner_groups.server())}  # what its files start from
for file in (ROOT / "conf" / "aligner").glob("*.yaml"):
    ALIGNER |= set(keys_of(OmegaConf.to_container(OmegaConf.load(file))))


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_what_a_guide_names_exists(guide):
    text = guide.read_text()
    shown = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))
    wrong = [
        path for path in re.findall(rf"(?<![\w/.-])((?:{'|'.join(FOLDERS)})/[\w./-]*\w)", shown)
        if "NAME" not in path and not (ROOT / path).exists() and not path.startswith("benchmarks/results")
    ]  # fmt: skip
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wrong += [name for name in re.findall(r"make ([a-z-]+)", shown) if name not in targets]
    for key in re.findall(r"(?<![\w/.$-])([a-z]\w*(?:\.\w+)+)(?=[=`,; ]|$)", shown, re.MULTILINE):
        known = KEYS | ALIGNER if guide.name == "aligner.md" else KEYS
        if key.split(".")[0] in SECTIONS and key not in known and "*" not in key:
            wrong.append(key)
    assert wrong == []


COMMAND = re.compile(r"python3? (examples/\w+\.py)((?:[ ]|\\\n)[^#`|\n\\]*(?:\\\n[^#`|\n\\]*)*)?")


def commands(path):
    """Every command of the guide that runs an example, with its arguments; those with placeholders left out."""
    for script, rest in COMMAND.findall(path.read_text()):
        given = shlex.split(rest.replace("\\\n", " "))
        if not any("..." in word or word.startswith("[") for word in given):
            yield script, given


@pytest.mark.parametrize("guide", [ROOT / "README.md", *GUIDES], ids=lambda path: path.name)
def test_every_command_of_a_guide_has_a_config_that_may_run(guide):
    wrong = []
    for script, given in commands(guide):
        default = re.search(r'default="([\w.]+)"', (ROOT / script).read_text())
        options = parser(default[1] if default else "rlkd_demo", None).parse_intermixed_args(given)
        try:
            found = check(load(options.config_name, options.overrides))
        except ConfigError as error:
            found = error.problems
        wrong += [f"{script} {' '.join(given)}: {problem}" for problem in found]
    assert wrong == []


def test_commands_are_found():
    assert len(list(commands(ROOT / "README.md"))) >= 8
