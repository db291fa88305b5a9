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


class ChatTemplate:
    """The template of a tokenizer's directory, rendered with the names that transformers and vLLM give to it.

    It stands in `chat_template.jinja`, or as `chat_template` in `tokenizer_config.json` (one text, or a list of named
    ones, of which `default` counts).
    Raises: InputError when there is none, or none that can be read.
    """

    def __init__(self, directory: str | Path) -> None:
        self._where = Path(directory)
        config = _json(self._where / _CONFIG)
        text = self._text(config)
        # As transformers sets it up: templates come with models and are not trusted.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self._tokens = _special_tokens(config)
        try:
            self._template = environment.from_string(text)
        except jinja2.TemplateError as err:
            raise InputError(f"the chat template of {self._where} cannot be read ({err})") from err

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text that a reply follows. Raises InputError when the template refuses the messages."""
        try:
            return self._template.render(messages=list(messages), add_generation_prompt=True, **self._tokens)
        except jinja2.TemplateError as err:
            raise InputError(f"the chat template of {self._where} refuses a conversation ({err})") from err

    def _text(self, config: Mapping[str, Any]) -> str:
        file = self._where / _FILE
        if file.is_file():
            return file.read_text(encoding="utf-8")
        found = config.get("chat_template")
        if isinstance(found, list):
            found = next((entry.get("template") for entry in found if entry.get("name") == "default"), None)
        if not isinstance(found, str):
            raise InputError(
                f"model.tokenizer.type={self._where} has no chat template ({_FILE}, or chat_template in {_CONFIG}); wanted "
                "the tokenizer of an instruct model, since the GSRM is served over chat completions"
            )
        return found


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token and the like; saved either as text or as an added token with its flags."""
    found = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            found[name] = value
    return found


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise InputError(
            f"{file} cannot be read ({err}); wanted a tokenizer's directory in model.tokenizer.type"
        ) from err
    return value if isinstance(value, dict) else {}


def _tojson(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **how)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
