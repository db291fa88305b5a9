"""A tokenizer's own chat template: what an inference server makes of chat messages, so that training sees the same text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rlkd_nemo.errors import InputError

_FILE, _CONFIG = "chat_template.jinja", "tokenizer_config.json"
# For templates that date their prompts (Llama 3.2, whose own default this is): a run that goes on tomorrow must find the
# rows that it began with, and the day of serving is another one anyway.
_DAY = datetime(2024, 7, 26)
_INSTRUCT = "the tokenizer's directory of an instruct model, since the GSRM is served over chat completions"


class ChatTemplate:
    """The template of a tokenizer's directory, rendered with the names that transformers and vLLM give to it.

    It stands in `chat_template.jinja`, or as `chat_template` in `tokenizer_config.json` (one text, or a list of named
    ones, of which `default` counts).
    Args: key, wanted: for messages: the setting that names the directory, and what to do about a wrong one.
    Raises: InputError when there is none, or none that can be read.
    """

    def __init__(self, directory: str | Path, key: str = "model.tokenizer.type", wanted: str = _INSTRUCT) -> None:
        self._where, self._named, self._wanted = Path(directory), f"{key}={directory}", wanted
        config = self._json(self._where / _CONFIG)
        text = self._text(config)
        # As transformers sets it up: templates come with models and are not trusted.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _DAY.strftime
        self._tokens = _special_tokens(config)
        try:
            self._template = environment.from_string(text)
        except jinja2.TemplateError as err:
            raise InputError(
                f"{self._named}: its chat template cannot be read ({type(err).__name__}: {err}); wanted {self._wanted}"
            ) from err

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text that a reply follows. Raises InputError when the template refuses the messages."""
        try:
            return self._template.render(messages=list(messages), add_generation_prompt=True, **self._tokens)
        except (jinja2.TemplateError, TypeError) as err:
            raise InputError(
                f"{self._named}: its chat template refuses a conversation ({type(err).__name__}: {err}); wanted {self._wanted}"
            ) from err

    def _text(self, config: Mapping[str, Any]) -> str:
        file = self._where / _FILE
        if file.is_file():
            return file.read_text(encoding="utf-8")
        found = config.get("chat_template")
        if isinstance(found, list):
            found = next((entry.get("template") for entry in found if entry.get("name") == "default"), None)
        if not isinstance(found, str) or not found:
            raise InputError(
                f"{self._named} has no chat template ({_FILE}, or chat_template in {_CONFIG}); wanted {self._wanted}"
            )
        return found

    def _json(self, file: Path) -> dict[str, Any]:
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as err:
            raise InputError(f"{self._named}: {file.name} cannot be read ({err}); wanted {self._wanted}") from err
        return value if isinstance(value, dict) else {}


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token and the like; saved either as text or as an added token with its flags."""
    found = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            found[name] = value
    return found


def _tojson(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **how)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
