"""The schema as a typed tree: settings are put into it one by one, and every one that does not fit is a sentence."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlkd_nemo.config.objectives import OBJECTIVES
from rlkd_nemo.config.schema import TASKS, Config

# Groups whose settings depend on their `name`.
NAMED: dict[str, Mapping[str, type]] = {"objective": OBJECTIVES, "task": TASKS}


@dataclass(frozen=True)
class Setting:
    """One value on its way into the tree. `origin`: the file or the override it came from, for messages."""

    key: str
    value: Any
    origin: str


def flatten(tree: Mapping[Any, Any], origin: str, prefix: str = "") -> Iterator[Setting]:
    """Leaves of a nested mapping; lists are leaves, interpolations stay text, and an empty section gives nothing."""
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, origin, f"{dotted}.")
        else:
            yield Setting(dotted, value, origin)


def nearest(name: str, choices: Iterable[str]) -> str:
    """`; did you mean X?` or nothing. A key typed without its section is found by its last part."""
    choices = list(choices)
    ending = [choice for choice in choices if choice.endswith(f".{name}")]
    if len(ending) == 1:
        return f"; did you mean {ending[0]}?"
    # The same section first, then the whole name, then its last part anywhere.
    section, _, last = name.rpartition(".")
    siblings = {choice.rpartition(".")[2]: choice for choice in choices if choice.rpartition(".")[0] == section}
    ends = {choice.rpartition(".")[2]: choice for choice in reversed(choices)}
    whole = {} if siblings else {choice: choice for choice in choices}
    for typed, found, cutoff in ((last, siblings, 0.6), (name, whole, 0.6), (last, ends, 0.8)):
        for match in difflib.get_close_matches(typed, found, n=1, cutoff=cutoff):
            return f"; did you mean {found[match]}?"
    return ""


def choose(group: str, name: Any, origin: str) -> type:
    """The settings class of `objective` or `task`. Raises KeyError with a whole sentence."""
    known = NAMED[group]
    if name is None:
        raise KeyError(f"{group}.name is not set; choose one with {group}=<name>: {', '.join(known)}")
    if name not in known:
        hint = nearest(str(name), known)
        raise KeyError(f"{group}.name={name!r} ({origin}) is unknown; wanted one of {', '.join(known)}{hint}")
    return known[name]


def fill(settings: list[Setting]) -> tuple[Config | None, list[str]]:
    """Put all settings, in order, over the schema's defaults.

    Returns: the typed config without what did not fit, None when a group is not chosen or a value leads nowhere; and
    every problem as one sentence.
    """
    problems: list[str] = []
    tree = OmegaConf.structured(Config)
    for group in NAMED:
        named = [s for s in settings if s.key == f"{group}.name"]
        try:
            chosen = choose(group, named[-1].value if named else None, named[-1].origin if named else "")
        except KeyError as error:
            problems.append(error.args[0])
            settings = [s for s in settings if s.key.split(".")[0] != group]
        else:
            node = OmegaConf.structured(chosen)
            OmegaConf.set_readonly(node, None)  # the classes are frozen; their values still come from files
            tree[group] = node
            settings = [s for s in settings if s.key != f"{group}.name"]
    known = set(_paths(tree))
    for setting in settings:
        if setting.key not in known:
            problems.append(_unknown(setting, known, tree))
        elif isinstance(OmegaConf.select(tree, setting.key), DictConfig):
            problems.append(f"{setting.key}={setting.value!r} ({setting.origin}) is a section; set a key inside it")
        else:
            try:
                OmegaConf.update(tree, setting.key, setting.value)
            except OmegaConfBaseException:
                wanted = _wanted(tree, setting.key)
                problems.append(
                    f"{setting.key}={setting.value!r} ({setting.origin}) has the wrong type; wanted {wanted}"
                )
    if any(OmegaConf.is_missing(tree, group) or tree[group] is None for group in NAMED):
        return None, problems
    try:
        return OmegaConf.to_object(tree), problems  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        # An interpolation that leads nowhere, or to a value of another type.
        reason = str(error).splitlines()[0]
        return None, [*problems, f"{getattr(error, 'full_key', None) or 'config'}: {reason}"]


def _unknown(setting: Setting, known: set[str], tree: DictConfig) -> str:
    group, _, rest = setting.key.partition(".")
    what = f"{setting.key} ({setting.origin}) is no setting"
    if group in NAMED and rest:
        kind = OmegaConf.get_type(tree[group])
        name = next(name for name, cls in NAMED[group].items() if cls is kind)
        what = f"{what} of {group}={name}"
        others = [n for n, cls in NAMED[group].items() if rest in {field.name for field in dataclasses.fields(cls)}]
        if others:
            return f"{what}; it belongs to {group}={' or '.join(others)}"
    return what + (nearest(setting.key, sorted(known)) or "; --cfg job prints all settings")


def _paths(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, node):
        path = f"{prefix}{key}"
        yield path
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            yield from _paths(child, f"{path}.")


def _wanted(tree: DictConfig, key: str) -> str:
    parent, _, last = key.rpartition(".")
    kind = OmegaConf.get_type(OmegaConf.select(tree, parent) if parent else tree)
    assert kind is not None, f"{parent} has no schema"
    annotation = {field.name: field.type for field in dataclasses.fields(kind)}[last]
    return str(getattr(annotation, "__name__", annotation)).replace(" | None", " or null")
