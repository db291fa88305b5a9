"""Model families: one file each, found by its name; a family says how its Hugging Face form differs from the others'.

All of them are decoders of RMSNorm, SwiGLU and RoPE with grouped queries, and name their tensors alike. A file takes
part by exporting `FAMILY`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from rlkd_nemo.config.schema import Model
from rlkd_nemo.errors import ConfigError


@dataclass(frozen=True)
class Family:
    """Attributes:
    architecture / model_type: what `config.json` calls it.
    fixed: settings of `Model` that every member has.
    defaults: keys of `config.json` that may be absent, with the value they then have.
    written: keys of `config.json` that an export adds.
    """

    architecture: str
    model_type: str
    fixed: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    written: Mapping[str, Any] = field(default_factory=dict)


@cache
def families() -> dict[str, Family]:
    """Every family by the name of its file."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in names}
    return {name: module.FAMILY for name, module in modules.items() if isinstance(module.FAMILY, Family)}


def family_for(model: Model, name: str | None = None) -> Family:
    """The family called `name`, or the first whose fixed settings are `model`'s.

    Raises: ConfigError when there is no such family or the model is no member of it.
    """
    known = families()
    if name is not None and name not in known:
        raise ConfigError(f"convert.family={name!r} is unknown; wanted one of {', '.join(known)}")
    for candidate in [known[name]] if name is not None else known.values():
        wrong = [key for key, value in candidate.fixed.items() if getattr(model, key) != value]
        if not wrong:
            return candidate
    has = ", ".join(f"model.{key}={getattr(model, key)}" for key in ("add_qkv_bias", "qk_layernorm"))
    raise ConfigError(f"no model of {name or ' or '.join(known)} has {has}; choose another convert.family")
