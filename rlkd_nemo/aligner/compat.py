"""Which NeMo this plugin was made for, checked before any of it is imported. Standard library only."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from importlib import metadata
from typing import Any

from rlkd_nemo.errors import EXIT_DONE, EXIT_ERROR, EXIT_INPUT, ConfigError, RlkdError

# Releases that the tests ran with; NeMo-Aligner has had none since.
NEEDED = {"nemo-aligner": "0.7.0", "nemo-toolkit": "2.1.0", "megatron-core": "0.10.0"}
SERVING = {"nvidia-pytriton": "0.5"}
CONTAINER = "nvcr.io/nvidia/nemo:25.02"


def problems(needed: dict[str, str]) -> list[str]:
    """Each package that is missing or of another release, as `name 1.2 (wanted 1.3)`; patch releases may differ."""
    found = []
    for name, wanted in needed.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            found.append(f"{name} is not installed (wanted {wanted})")
            continue
        if _release(version) != _release(wanted):
            found.append(f"{name} is {version} (wanted {wanted})")
    return found


def _release(version: str) -> list[str]:
    return version.split("+")[0].split(".")[:2]


def check(needed: dict[str, str] | None = None) -> None:
    """Raises: ConfigError that names every package at fault and where the right ones are."""
    found = problems(NEEDED if needed is None else needed)
    if found:
        raise ConfigError(
            f"rlkd_nemo.aligner cannot run here: {'; '.join(found)}. Use the NGC container {CONTAINER}, or one built from "
            "NeMo-Aligner's own Dockerfile at v0.7.0; on a machine without a GPU `make venv-aligner` installs them. "
            "rlkd_nemo's own trainer (examples/train_rlkd.py) needs none of these packages"
        )


def begin(description: str | None, needed: dict[str, str] | None = None) -> None:
    """The first line of a script: answers --help, and stops with exit code 2 where the packages are not right."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.stdout.write(
            f"usage: {sys.argv[0]} [--config-path DIR] [--config-name NAME] [key=value ...]\n\n{description}\n"
            "--cfg job prints the config and stops; with --resolve, every reference in it as its value.\n"
        )
        sys.exit(EXIT_DONE)
    try:
        check(needed)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(EXIT_INPUT)


def exiting(main: Callable[[Any], None]) -> Callable[[Any], None]:
    """`main(cfg)`, whose errors of this package become their message and exit code: 2 wrong config or input, 1 others."""

    @functools.wraps(main)
    def guarded(cfg: Any) -> None:
        try:
            main(cfg)
        except RlkdError as error:
            sys.stderr.write("".join(f"error: {line}\n" for line in str(error).splitlines()))
            sys.stderr.flush()
            # Neither other ranks nor threads of a client are waited for: they would keep a failed run alive.
            os._exit(error.exit_code)
        except Exception:  # noqa: BLE001 - told in full, then out
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(EXIT_ERROR)

    return guarded
