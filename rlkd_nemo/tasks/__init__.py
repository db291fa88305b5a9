"""Tasks: problems, their verification and their worked examples.

The folder is the registry: a file takes part by exporting `build(settings) -> Task`, and `rlkd_nemo.config.schema.TASKS`
gives its settings under the file's name. Where the way that steps are written does not depend on problems, it also exports
`notation(settings) -> Notation | None`, for those that need no more of the task.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any

from rlkd_nemo.config.schema import TASKS
from rlkd_nemo.errors import ConfigError
from rlkd_nemo.interfaces import Task
from rlkd_nemo.types import Notation


def names() -> list[str]:
    """Every task of this folder, sorted; imports none of them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name in TASKS)


def load(name: str) -> Callable[[Any], Task]:
    """`build` of the file `name`.py. Raises ConfigError, listing the choices, when there is none of that name."""
    module = _module(name)
    found: Callable[[Any], Task] | None = getattr(module, "build", None)
    if not callable(found):
        raise ConfigError(f"task.name={name!r}: {module.__name__} exports no function build(settings)")
    return found


def build(task_cfg: Any) -> Task:
    """The task of typed settings, whose class is registered under the task's name.

    Raises: ConfigError for settings of no task, or that their task refuses; InputError for files it cannot use.
    """
    return load(_name(task_cfg))(task_cfg)


def notation(task_cfg: Any) -> Notation | None:
    """`build(task_cfg).notation()`, without reading any problem where the task's file exports `notation(settings)`.

    Raises: as `build`.
    """
    name = _name(task_cfg)
    found: Callable[[Any], Notation | None] | None = getattr(_module(name), "notation", None)
    return found(task_cfg) if found is not None else load(name)(task_cfg).notation()


def _name(task_cfg: Any) -> str:
    for name, settings in TASKS.items():
        if type(task_cfg) is settings:
            return name
    raise ConfigError(f"task settings {task_cfg!r} belong to no task; wanted those of one of {', '.join(names())}")


def _module(name: str) -> ModuleType:
    choices = names()
    if name not in choices:
        near = difflib.get_close_matches(name, choices, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"task.name={name!r} is no task; wanted one of {', '.join(choices)}{hint}")
    return importlib.import_module(f"{__name__}.{name}")
