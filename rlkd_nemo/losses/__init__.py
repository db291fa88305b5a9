"""Objectives as pure functions of tensors [batch, tokens]: no process groups, no config tree, no host synchronisation.

The folder is the registry: a file takes part by exporting a function of its own name, `name(batch, settings, step=0)`,
for which `rlkd_nemo.config.objectives` has a settings class of that name in any case.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import TYPE_CHECKING, Any, Protocol

from rlkd_nemo.config.objectives import OBJECTIVES
from rlkd_nemo.errors import ConfigError

if TYPE_CHECKING:
    from rlkd_nemo.losses.batch import TokenBatch, TokenLoss


class Objective(Protocol):
    """A loss of one token at a time; `settings` is the dataclass of the same name, `step` drives its schedules."""

    def __call__(self, batch: TokenBatch, settings: Any, step: int = 0) -> TokenLoss: ...


def names() -> list[str]:
    """Every objective of this folder, sorted; imports none of them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name in OBJECTIVES)


def load(name: str) -> Objective:
    """The objective in the file `name`.py of this folder.

    Raises: ConfigError, listing the choices, when there is none of that name.
    """
    choices = names()
    if name not in choices:
        near = difflib.get_close_matches(name, choices, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"objective.name={name!r} is no objective; wanted one of {', '.join(choices)}{hint}")
    module = importlib.import_module(f"{__name__}.{name}")
    objective: Objective | None = getattr(module, name, None)
    if not callable(objective):
        raise ConfigError(
            f"objective.name={name!r}: {module.__name__} exports no function {name}(batch, settings, step)"
        )
    return objective
