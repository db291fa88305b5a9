"""A question as a prompt: through a model's own chat template, or as plain text for a model without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rlkd_nemo.errors import InputError

# The form that rewards/format.py looks for. Templates of reasoning models may open the thinking themselves.
THINK = "<think>\n"
INSTRUCTION = (
    "Think first, then answer: write your reasoning between <think> and </think>, and after it the final answer between "
    "<answer> and </answer>."
)


class Chat:
    """Questions to prompts that end with the opening tag of the thinking.

    Args: directory: of a tokenizer with a chat template; None: plain text in two turns.
    Raises: InputError when the directory has no template, or one that cannot be used.
    """

    def __init__(self, directory: str | None) -> None:
        self._directory = directory
        self._names: dict[str, str] = {}
        self._template = None
        if directory is not None:
            # No clock: a template that dates its prompts would make a run differ from day to day.
            environment = ImmutableSandboxedEnvironment(
                trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
            )
            environment.globals["raise_exception"] = _refuse
            environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
            text, self._names = _read(Path(directory))
            try:
                self._template = environment.from_string(text)
                self.prompt("a question")
            except (TemplateError, TypeError) as err:
                raise InputError(
                    f"task.chat_template={directory}: its template cannot be used ({type(err).__name__}: {err}); wanted one "
                    "that takes a user's message, or null for plain text"
                ) from err

    def prompt(self, question: str) -> str:
        """The text that the student continues."""
        asked = f"{INSTRUCTION}\n\n{question}"
        if self._template is None:
            return f"User: {asked}\nAssistant: {THINK}"
        messages = [{"role": "user", "content": asked}]
        text = self._template.render(messages=messages, add_generation_prompt=True, **self._names)
        opened = text.rstrip()
        return f"{opened}\n" if opened.endswith(THINK.strip()) else f"{text}{THINK}"


def _read(directory: Path) -> tuple[str, dict[str, str]]:
    """The template and the special tokens that it may name."""
    file = directory / "tokenizer_config.json"
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))
        apart = directory / "chat_template.jinja"
        text = apart.read_text(encoding="utf-8") if apart.is_file() else config.get("chat_template")
    except (OSError, ValueError, AttributeError) as err:
        raise InputError(
            f"task.chat_template={directory}: {file.name} cannot be read ({err}); wanted a tokenizer's directory"
        ) from err
    if isinstance(text, list):  # several by name
        text = next((entry.get("template") for entry in text if entry.get("name") == "default"), None)
    if not isinstance(text, str) or not text:
        raise InputError(
            f"task.chat_template={directory} has no chat template; name a chat model's directory, or null for plain text"
        )
    names = {}
    for key in ("bos_token", "eos_token", "pad_token"):
        value = config.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            names[key] = value
    return text, names


def _refuse(message: str) -> None:
    raise TemplateError(message)
