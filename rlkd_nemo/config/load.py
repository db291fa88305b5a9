"""Config files and overrides to one typed `Config`: composed by hydra, checked against the schema, no torch.

Groups (`objective=grpo`, `model=tiny`, `task=expressions`) pick a file; dotted keys set one value. What is wrong with
the settings themselves is found here; what is wrong between them, in `rules.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlkd_nemo.config.schema import Config
from rlkd_nemo.config.tree import NAMED, Setting, fill, flatten, nearest
from rlkd_nemo.errors import ConfigError
from rlkd_nemo.launch.cli import cli

__all__ = ["cli", "conf_directory", "load", "to_yaml"]


def conf_directory() -> Path:
    """The configs that come with the package: `conf/` of a checkout, or the copy inside an installed package."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def load(config_name: str, overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> Config:
    """Compose `config_name` with overrides into a typed config.

    Args:
        config_name: file without `.yaml`, in `config_dir`.
        overrides: `group=choice` or `dotted.key=value` (`+` and `++` before a key are accepted, as NeMo users type them).
        config_dir: the folder; the package's own groups stay reachable. Default: the package's conf/.
    Raises: ConfigError with every problem found, each naming the key and the file or override it came from.
    """
    cfg, problems = attempt(config_name, overrides, config_dir)
    if cfg is None or problems:
        raise ConfigError(problems)
    return cfg


def attempt(
    config_name: str, overrides: Sequence[str] = (), config_dir: str | Path | None = None
) -> tuple[Config | None, list[str]]:
    """As `load`, but with what can be made of a config that has problems, so that more of them can be looked for.

    Returns: the config without the settings that do not fit, None when nothing can be made of it; and the problems.
    """
    own = conf_directory()
    directory = Path(config_dir).expanduser().resolve() if config_dir is not None else own
    folders = [directory] if directory == own else [directory, own]
    try:
        _require_file(directory, config_name)
    except ConfigError as error:
        return None, error.problems
    groups, values, unread = _parse(overrides, folders)
    searchpath = [] if directory == own else [f"hydra.searchpath=[file://{own}]"]
    try:
        with initialize_config_dir(str(directory), job_name="rlkd_nemo", version_base="1.3"):
            composed = compose(config_name, [*groups, *searchpath], return_hydra_config=True)
            chosen = {g: c for g, c in composed.hydra.runtime.choices.items() if not g.startswith("hydra/")}
            tree: Any = OmegaConf.to_container(composed, resolve=False)
    except (HydraException, OmegaConfBaseException) as error:
        return None, [*unread, f"{directory / config_name}.yaml: {_first_lines(error)}"]
    except Exception as error:  # hydra lets its YAML reader's own errors through
        if not type(error).__module__.startswith("yaml"):
            raise
        return None, [*unread, f"{directory / config_name}.yaml, or a file it names, is no valid YAML: {error}"]
    del tree["hydra"]
    files = {f"{config_name}.yaml": ""} | {
        f"{group}/{choice}.yaml": group for group, choice in chosen.items() if choice
    }
    origins = _origins(files, folders)
    settings = [Setting(s.key, s.value, origins.get(s.key, f"{config_name}.yaml")) for s in flatten(tree, config_name)]
    cfg, problems = fill(settings + values)
    if cfg is not None and cfg.trainer.devices is None:
        model = cfg.model
        ranks = model.tensor_model_parallel_size * model.pipeline_model_parallel_size * model.context_parallel_size
        cfg.trainer.devices = max(2, -(-ranks // max(1, cfg.trainer.num_nodes)))
    return cfg, [*unread, *problems]


def to_yaml(cfg: Config) -> str:
    """The resolved config; loading it again gives an equal one."""
    tree = asdict(cfg)
    for group, classes in NAMED.items():
        settings = getattr(cfg, group)
        names = [name for name, cls in classes.items() if type(settings) is cls]
        tree[group] = {"name": names[0], **tree[group]} if names else None
    return OmegaConf.to_yaml(OmegaConf.create(tree))


def _parse(overrides: Sequence[str], folders: list[Path]) -> tuple[list[str], list[Setting], list[str]]:
    """Overrides that choose a file, for hydra; values, for the typed tree; and what is neither, as sentences."""
    groups: list[str] = []
    values: list[Setting] = []
    problems: list[str] = []
    for text in overrides:
        try:
            (override,) = OverridesParser.create().parse_overrides([text])
        except (HydraException, ValueError) as error:
            problems.append(f"override {text!r} cannot be read ({_first_lines(error)}); wanted key=value")
            continue
        key, origin = override.key_or_group, f"override {text!r}"
        if override.is_delete() or override.is_sweep_override() or override.package is not None:
            problems.append(f"{origin}: only key=value and group=choice are understood; to unset a key give it null")
        elif _is_group(override, folders):
            choice = override.value()
            choices = sorted({f.stem for folder in folders for f in (folder / key).glob("*.yaml")})
            if choice in choices:
                groups.append(f"{key}={choice}")
            else:
                problems.append(f"{origin}: wanted one of {', '.join(choices)}{nearest(str(choice), choices)}")
        else:
            value = override.value()
            values.extend(
                flatten(value, origin, f"{key}.") if isinstance(value, Mapping) else [Setting(key, value, origin)]
            )
    return groups, values, problems


def _is_group(override: Override, folders: list[Path]) -> bool:
    return not isinstance(override.value(), dict) and any((f / override.key_or_group).is_dir() for f in folders)


def _require_file(directory: Path, config_name: str) -> None:
    if not directory.is_dir():
        raise ConfigError(f"--config-dir {directory}: there is no such folder")
    names = sorted(path.stem for path in directory.glob("*.yaml"))
    if config_name not in names:
        listed = ", ".join(names) or "none"
        hint = nearest(config_name, names)
        raise ConfigError(f"--config-name {config_name}: no such file in {directory}; it has {listed}{hint}")


def _origins(files: dict[str, str], folders: list[Path]) -> dict[str, str]:
    """Which file set each key. Later files are groups, which the file that names them may override: it comes last."""
    found: dict[str, str] = {}
    for name, package in reversed(files.items()):
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if path is None:
            continue
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        if path.read_text(encoding="utf-8").startswith(_GLOBAL):
            package = ""
        if isinstance(tree, dict):
            found |= {s.key: s.origin for s in flatten(tree, name, f"{package}." if package else "")}
    return found


_GLOBAL = "# @package _global_"  # a group's file that sets keys of several sections


def _first_lines(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:3] if line.strip())
