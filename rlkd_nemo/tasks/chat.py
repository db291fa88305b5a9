"""A question as a prompt: through a model's own chat template, or as plain text for a model without one."""

from __future__ import annotations

from rlkd_nemo.gsrm.chat_template import ChatTemplate

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
        self._template = None
        if directory is not None:
            wanted = "a chat model's directory, or null for plain text"
            self._template = ChatTemplate(directory, "task.chat_template", wanted)
            self.prompt("a question")  # one that takes no user's message is found now

    def prompt(self, question: str) -> str:
        """The text that the student continues."""
        asked = f"{INSTRUCTION}\n\n{question}"
        if self._template is None:
            return f"User: {asked}\nAssistant: {THINK}"
        text = self._template.prompt([{"role": "user", "content": asked}])
        opened = text.rstrip()
        return f"{opened}\n" if opened.endswith(THINK.strip()) else f"{text}{THINK}"
