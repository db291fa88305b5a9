"""Submitting a script of slurm/ with the options that its config asks for. No torch."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rlkd_nemo.errors import EXIT_DONE, InputError
from rlkd_nemo.launch.cli import load_checked, parser
from rlkd_nemo.launch.slurm.jobs import JOBS, header

# The last line of every script names its kind of job and its config.
_LAST = re.compile(r'^rlkd_job (?P<kind>\w+) (?P<config>\S+) "\$@"$', re.MULTILINE)
_OPTION = re.compile(r"^#SBATCH .*\n", re.MULTILINE)


def kind_and_config(script: str, text: str) -> tuple[str, str]:
    """What a script runs. Raises: InputError when it is none of ours."""
    last = _LAST.search(text)
    if last is None or last["kind"] not in JOBS:
        raise InputError(f'{script}: no line `rlkd_job KIND CONFIG "$@"` with a kind out of {", ".join(JOBS)}')
    return last["kind"], last["config"]


def with_header(text: str, lines: Sequence[str]) -> str:
    """A script with these `#SBATCH` lines in the place of its own."""
    start = _OPTION.search(text)
    if start is None:
        raise InputError("the script has no #SBATCH line to replace")
    kept = _OPTION.sub("", text)
    return kept[: start.start()] + "".join(f"{line}\n" for line in lines) + kept[start.start() :]


def submit(script: str, arguments: Sequence[str], sbatch: Sequence[str]) -> int:
    """Let the doctor look, then call `sbatch`; nothing is submitted that he refuses.

    Args:
        arguments: the config's name and overrides, handed on to the script.
        sbatch: further options of `sbatch`.
    Returns: the exit code. Raises: InputError, ConfigError.
    """
    if not Path(script).is_file():
        known = ", ".join(sorted(str(path) for path in Path("slurm").glob("*.sh") if _LAST.search(path.read_text())))
        raise InputError(f"{script}: there is no such file; wanted a script, and then config and overrides: {known}")
    if shutil.which("sbatch") is None:
        raise InputError("sbatch is not on PATH; wanted a login node of a cluster with Slurm")
    text = Path(script).read_text(encoding="utf-8")
    kind, default = kind_and_config(script, text)
    options = parser(default, None).parse_intermixed_args(list(arguments))
    named = [f"--config-name={options.config_name}"]
    named += [f"--config-dir={options.config_dir}"] if options.config_dir else []
    # The job's kind says which parts of the layout the doctor has to look at.
    doctor = [sys.executable, "-m", "rlkd_nemo.launch.slurm", "doctor", kind, *named, *options.overrides]
    code = subprocess.run(doctor, check=False).returncode
    if code != EXIT_DONE:
        return code
    lines = header(kind, options.config_name, load_checked(options, supervised=JOBS[kind].supervised))
    with tempfile.TemporaryDirectory(prefix="rlkd-submit-") as folder:
        made = Path(folder) / Path(script).name
        made.write_text(with_header(text, lines), encoding="utf-8")
        return subprocess.run(["sbatch", *sbatch, str(made), *arguments], check=False).returncode
