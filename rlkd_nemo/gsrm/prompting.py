"""From templates to chat messages: decomposition with worked examples, and the judge's questions.

The templates and examples are the files of `prompts/`; a directory of the user's own may replace any of them by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from rlkd_nemo.config.ranges import DOMAINS
from rlkd_nemo.errors import BadReply, InputError
from rlkd_nemo.gsrm import schema, steps
from rlkd_nemo.gsrm.fence import fencer
from rlkd_nemo.types import Step

Messages = list[dict[str, str]]
MAX_FIELD_CHARS = 4_000  # of one field of a step that the judge sees; the steps are a model's own short texts


@dataclass(frozen=True)
class Example:
    """A worked decomposition."""

    problem: str
    text: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Prompt:
    """Messages of a chat, the word that fences the untrusted texts in the last one, and how much of them was cut."""

    messages: Messages
    boundary: str
    cut_chars: int


class Prompts:
    """All templates, read once. `version` is the hash of their contents.

    Args: directory: whose files replace the package's of the same name; None: the package's own.
    Raises: InputError for a directory that is not there, a file in it that replaces nothing, and a bad example.
    """

    def __init__(
        self, directory: str | Path | None = None, max_problem_chars: int = 20_000, max_text_chars: int = 60_000
    ):
        own = resources.files("rlkd_nemo.gsrm") / "prompts"
        files = {entry.name: entry.read_text(encoding="utf-8") for entry in own.iterdir() if entry.is_file()}
        if directory is not None:
            files |= _replacements(Path(directory), files)
        digest = hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()
        self.version = f"prompts-{digest[:12]}"
        self.max_problem_chars, self.max_text_chars = max_problem_chars, max_text_chars
        self.examples = {domain: _examples(f"{domain}.examples.json", files) for domain in DOMAINS}
        self._beginnings: dict[tuple[str, schema.Form], Messages] = {}
        self._templates = jinja2.Environment(
            loader=jinja2.DictLoader(files), undefined=jinja2.StrictUndefined, autoescape=False
        )

        self._try_out()

    def decomposition(self, problem: str, text: str, domain: str, form: schema.Form) -> Prompt:
        """System turn, each worked example as a turn of its own, and the text to take apart.

        Args: domain: one of DOMAINS.   form: what the reply must look like.
        """
        if domain not in DOMAINS:
            raise InputError(f"domain {domain!r} has no prompt; wanted one of {', '.join(DOMAINS)}")
        if (domain, form) not in self._beginnings:
            self._beginnings[domain, form] = self._beginning(domain, form)
        last = self._decompose_user(problem, text)
        return Prompt(self._beginnings[domain, form] + last.messages, last.boundary, last.cut_chars)

    def _beginning(self, domain: str, form: schema.Form) -> Messages:
        """The same for every text, so that endpoints can keep it in their prefix cache."""
        system = self._render(
            "decompose_system.jinja", domain=domain, form=form, labels=steps.LABELS, no_steps=schema.NO_STEPS
        )
        messages = [{"role": "system", "content": system}]
        for example in self.examples[domain]:
            request = self._decompose_user(example.problem, example.text)
            reply = schema.write(example.steps, form)
            messages += [*request.messages, {"role": "assistant", "content": reply}]
        return messages

    def question(self, kind: str, teacher: str, student: str, problem: str) -> Prompt:
        """Are the two the same? `kind` is `meta`, `question` or `answer`; the reply is yes or no."""
        fenced, word, cut = self._fencer(problem, teacher, student)
        user = self._render(
            "judge_user.jinja", boundary=word, fenced=fenced, problem=problem, teacher=teacher, student=student
        )
        return Prompt(_chat(self._render("judge_system.jinja", kind=kind), user), word, cut)

    def all_questions(self, pairs: Sequence[Mapping[str, Any]], problem: str) -> Prompt:
        """One request for all verdicts of a response.

        Args: pairs: each with `number`, `fields` (names to compare), `teacher` and `student` (their texts by name).
        """
        texts = [pair[who][name] for pair in pairs for who in ("teacher", "student") for name in pair["fields"]]
        fenced, word, cut = self._fencer(problem, *texts)
        user = self._render("judge_response_user.jinja", boundary=word, fenced=fenced, problem=problem, pairs=pairs)
        return Prompt(_chat(self._render("judge_response_system.jinja"), user), word, cut)

    def _try_out(self) -> None:
        """A template that cannot be used, or shows a text outside a fence, is found now rather than in the middle of a run."""
        marks = {"problem": "\u039e", "text": "\u03a8", "teacher": "\u03a9", "student": "\u03a6"}
        problem, text, teacher, student = marks.values()
        pair = {"number": 1, "fields": ["meta"], "teacher": {"meta": teacher}, "student": {"meta": student}}
        tried = [("decompose_user", self.decomposition(problem, text, domain, "json")) for domain in DOMAINS]
        tried += [("judge_user", self.question(kind, teacher, student, problem)) for kind in schema.FIELDS]
        tried.append(("judge_response_user", self.all_questions([pair], problem)))
        for template, prompt in tried:
            request = prompt.messages[-1]["content"]
            for name in ("problem", "text") if template == "decompose_user" else ("problem", "teacher", "student"):
                fenced = request.count(f"<<<{prompt.boundary}\n{marks[name]}\n{prompt.boundary}>>>")
                if not fenced or request.count(marks[name]) != fenced:
                    raise InputError(
                        f"gsrm.llm.prompts: template {template}.jinja does not show the {name} behind a fence; wanted "
                        "fenced(...) around it, and nowhere else"
                    )

    def _decompose_user(self, problem: str, text: str) -> Prompt:
        short = problem[: self.max_problem_chars]
        fenced, word, cut = fencer(self.max_text_chars, short, text)
        content = self._render("decompose_user.jinja", boundary=word, fenced=fenced, problem=short, text=text)
        return Prompt([{"role": "user", "content": content}], word, cut + len(problem) - len(short))

    def _fencer(self, problem: str, *texts: str) -> tuple[Any, str, int]:
        # The problem has its own limit; the fields of steps share a shorter one.
        limited = {text: text[:MAX_FIELD_CHARS] for text in texts} | {problem: problem[: self.max_problem_chars]}
        fenced, word, cut = fencer(max(self.max_problem_chars, MAX_FIELD_CHARS), *limited.values())
        cut += sum(len(text) - len(short) for text, short in limited.items())
        return lambda text: fenced(limited[text]), word, cut

    def _render(self, template: str, **values: Any) -> str:
        try:
            return self._templates.get_template(template).render(**values).strip()
        except jinja2.TemplateError as err:
            raise InputError(f"gsrm.llm.prompts: template {template} cannot be used ({err})") from err


def _chat(system: str, user: str) -> Messages:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def _replacements(directory: Path, own: Mapping[str, str]) -> dict[str, str]:
    if not directory.is_dir():
        raise InputError(
            f"gsrm.llm.prompts={directory} is no directory; wanted one with files named as the package's own"
        )
    found = {path.name: path for path in sorted(directory.iterdir()) if path.is_file()}
    strange = [name for name in found if name not in own]
    if strange:
        raise InputError(
            f"gsrm.llm.prompts={directory} has {', '.join(strange)}, which replaces nothing; wanted names among "
            f"{', '.join(sorted(own))}"
        )
    return {name: path.read_text(encoding="utf-8") for name, path in found.items()}


def _examples(name: str, files: Mapping[str, str]) -> tuple[Example, ...]:
    try:
        return tuple(
            Example(entry["problem"], entry["text"], tuple(schema.read(json.dumps({"steps": entry["steps"]}), "json")))
            for entry in json.loads(files[name])
        )
    except (BadReply, ValueError, KeyError, TypeError) as err:
        raise InputError(f"gsrm.llm.prompts: {name} holds no worked examples ({type(err).__name__}: {err})") from err
