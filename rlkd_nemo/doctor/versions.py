"""What is installed, against what the package declares and what its tests passed with (constraints/*.txt)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from rlkd_nemo.config.schema import Config
from rlkd_nemo.doctor.finding import Finding, note

# Packages whose version decides on numbers or formats; the rest may differ in silence.
_TOLD = ("torch", "megatron-core", "safetensors", "hydra-core", "omegaconf", "numpy", "math-verify", "tokenizers")
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)", re.MULTILINE)
PACKAGE = "rlkd_nemo"


def findings(cfg: Config) -> Iterator[Finding]:
    """Installed versions outside what the package declares stop the run; others than the tested ones are noted.

    What is not installed is noted: a login node needs neither torch nor megatron, which the container brings.
    """
    extras = ["", *(["gsrm"] if cfg.gsrm.scorer == "service" else [])]
    wrong: set[str] = set()
    missing: list[str] = []
    for name, specifier in _declared(extras):
        version = _installed(name)
        if version is None:
            missing.append(name)
        elif specifier and not _satisfies(version, specifier):
            wrong.add(name)
            yield Finding(
                f"{name} {version} is installed; wanted {specifier} (setup.py): pip install '{name}{specifier}'"
            )
    if missing:
        yield note(f"not installed on this machine: {', '.join(sorted(missing))}; the run's own environment needs them")
    tested = _tested()
    other = [
        f"{name} {version} (tested: {tested[name]})"
        for name in _TOLD
        if name in tested and name not in wrong
        for version in [_installed(name)]
        if version is not None and version.partition("+")[0] != tested[name]
    ]
    if other:
        yield note(f"other versions than the tests passed with: {', '.join(other)}")


def _declared(extras: Sequence[str]) -> list[tuple[str, str]]:
    """Name and version specifier of every requirement of the installed package; none where it is only on the path."""
    try:
        lines = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        lines = []
    # Hydra brings packaging along.
    from packaging.requirements import Requirement

    found = []
    for line in lines:
        one = Requirement(line)
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras):
            found.append((one.name, str(one.specifier)))
    return found


def _tested() -> dict[str, str]:
    folder = Path(__file__).resolve().parents[2] / "constraints"
    texts = [file.read_text(encoding="utf-8") for name in ("base", "cpu") if (file := folder / f"{name}.txt").is_file()]
    return {name.lower(): version for text in texts for name, version in _PIN.findall(text)}


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _satisfies(version: str, specifier: str) -> bool:
    from packaging.specifiers import SpecifierSet

    # Vendors' builds of a version (2.6.0a0+ecf3bae in a container) count as that version.
    base = re.match(r"\d+(?:\.\d+)*", version)
    return SpecifierSet(specifier).contains(base.group() if base else version, prereleases=True)
