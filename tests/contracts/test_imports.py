"""Floors: what a login node runs loads no torch, and imports go down."""

import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import rlkd_nemo

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "megatron", "nemo", "nemo_aligner", "vllm", "transformers")
FLOOR_0 = {
    "types",
    "interfaces",
    "errors",
    "log",
    "tokenizer",
    "config",
    "tasks",
    "gsrm",
    "rewards",
    "launch",
    "report",
    "doctor",
}
EXAMPLES = sorted(ROOT.glob("examples/**/*.py"))


def modules():
    for entry in pkgutil.walk_packages(rlkd_nemo.__path__, "rlkd_nemo."):
        if entry.name.split(".")[1] in FLOOR_0 and ".gsrm.service" not in entry.name:
            yield entry.name


def fresh(code, *args):
    """Run `code` in a new interpreter; its stdout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_floor_0_loads_nothing_heavy():
    names = list(modules())
    assert "rlkd_nemo.config.load" in names and "rlkd_nemo.launch.local" in names
    # One interpreter for all; after each module, which heavy packages are there.
    code = (
        "import importlib, json, sys\nfound = {}\n"
        "for name in sys.argv[2].split():\n"
        "    importlib.import_module(name)\n"
        "    found[name] = [h for h in sys.argv[1].split() if h in sys.modules]\n"
        "print(json.dumps(found))"
    )
    found = json.loads(fresh(code, " ".join(HEAVY), " ".join(names)))
    assert {name: heavy for name, heavy in found.items() if heavy} == {}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_help_and_check_of_an_example_load_nothing_heavy(example):
    code = (
        "import runpy, sys\nheavy, script, option = sys.argv[1].split(), sys.argv[2], sys.argv[3]\n"
        "sys.argv = [script, option]\n"
        "try:\n    runpy.run_path(script, run_name='__main__')\n"
        "except SystemExit as end:\n    print('EXIT', end.code)\n"
        "print('HEAVY', [h for h in heavy if h in sys.modules])"
    )
    out = fresh(code, " ".join(HEAVY), str(example), "--help")
    assert "HEAVY []" in out and "EXIT 0" in out and "usage:" in out
    if "--check" in out:
        out = fresh(code, " ".join(HEAVY), str(example), "--check")
        assert "HEAVY []" in out and "EXIT 0" in out and "valid" in out


def test_floors_hold():
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout
