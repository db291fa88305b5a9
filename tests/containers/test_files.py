"""Dockerfiles and scripts, as far as that can be seen without building: paths, pins, users, linters."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "containers"
DOCKERFILES = sorted(FOLDER.glob("Dockerfile.*"))
PINS = dict(
    line.split("=", 1)
    for line in (FOLDER / "versions.env").read_text().splitlines()
    if line and not line.startswith("#")
)


def instructions(path):
    """(name, rest) of each instruction, continued lines joined, comments left out."""
    text = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name.upper(), rest.strip()


def tool(name):
    """A linter of the tests' own environment, or of the machine."""
    here = Path(sys.executable).with_name(name)
    found = str(here) if here.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (extra test)")
    return found


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_exists(path):
    copied = [rest.split() for name, rest in instructions(path) if name in ("COPY", "ADD")]
    assert copied
    for words in copied:
        for source in [word for word in words if not word.startswith("--")][:-1]:
            assert (ROOT / source).exists(), f"{path.name}: COPY {source}"
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not {"setup.py", "conf", "rlkd_nemo", "constraints", "examples", "slurm", "tests"} & set(ignored)


def test_what_the_apptainer_definition_copies_exists():
    files = (FOLDER / "trainer.def").read_text().split("%files")[1].split("%post")[0].split("\n")
    sources = [line.split()[0] for line in files if line.strip()]
    assert sources and all((ROOT / source).exists() for source in sources)
    wanted = set(re.findall(r"{{ (\w+) }}", (FOLDER / "trainer.def").read_text()))
    assert wanted and wanted <= set(PINS)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_nobody_runs_as_root(path):
    users = [rest for name, rest in instructions(path) if name == "USER"]
    assert users and users[-1] not in ("root", "0")
    assert any(name == "ARG" and rest == "USER_ID=1000" for name, rest in instructions(path))


def test_pins_stand_in_one_file_and_say_a_version():
    assert {f"{path.suffix[1:].upper()}_BASE" for path in DOCKERFILES} <= set(PINS)
    for name, image in PINS.items():
        if name.endswith("_BASE"):
            assert re.fullmatch(r"[a-z0-9.-]+/[a-z0-9./_-]+:(?!latest)[\w.-]+", image), image
            for path in DOCKERFILES:
                assert image not in path.read_text(), f"{path.name} repeats {name}"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_versions_in_a_dockerfile_are_those_of_the_constraints(path):
    pins = dict(
        line.split(" ;")[0].strip().split("==")
        for line in (ROOT / "constraints/base.txt").read_text().splitlines()
        if "==" in line
    )
    for package, version in re.findall(r"([\w-]+)==([\w.]+)", path.read_text()):
        assert pins[package.lower().replace("_", "-")] == version, package


def test_every_build_argument_is_documented():
    told = (FOLDER / "README.md").read_text()
    for path in DOCKERFILES:
        for name, rest in instructions(path):
            if name == "ARG":
                assert f"`{rest.split('=')[0]}`" in told, f"{path.name}: {rest}"


def test_hadolint_has_nothing_to_say():
    done = subprocess.run([tool("hadolint"), *map(str, DOCKERFILES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_shellcheck_has_nothing_to_say():
    scripts = [*sorted((ROOT / "slurm").glob("*.sh")), FOLDER / "build.sh", ROOT / ".ci/run"]
    command = [tool("shellcheck"), "--external-sources", *map(str, scripts)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
