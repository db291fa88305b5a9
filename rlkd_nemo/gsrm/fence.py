"""Untrusted text inside a prompt: marked off by a line that it cannot contain, and without anything that only looks
like our tags or a model's control tokens.

Covered: what can be checked by rule. Whether a model follows a plain sentence inside the fence is the model's own
virtue, and is measured, not assumed.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable

from rlkd_nemo.gsrm import steps

# Tags of reasoning and answers, and the control tokens of common chat templates, full-width look-alikes included.
_CONTROL = re.compile(
    r"""[<\uff1c](?=\s{0,8}/?\s{0,8}(?:think|answer)\s{0,8}[>\uff1e]
      |/?(?:im_start|im_end|system|user|assistant|tool\w{0,12}|s|bos|eos|start_of_turn|end_of_turn)>
      |<\s?/?\s?SYS>)
    |\[(?=/?INST\])""",
    re.IGNORECASE | re.VERBOSE,
)
_TOKEN = re.compile("[<\uff1c](?=[|\uff5c])")  # <|...|>: a space makes it text, and |a|<|b| stays what it is
_LOOSE_TAG = re.compile(
    r"[\[\uff3b\u3010](\s{0,8}(?:me(?:at|ta)[-_ \u2010-\u2015\uff0d]?reasoning"
    r"|sub[-_ \u2010-\u2015\uff0d]?(?:think|problem)|query|answer|no\s?steps)\s{0,8}\d{0,6}\s{0,8}[.:]?\s{0,8})[\]\uff3d\u3011]",
    re.IGNORECASE,
)
_BREAKS = re.compile("\r\n?|[\u2028\u2029\x0b\x0c\x85]")


class _Visible(dict[int, "int | None"]):
    """For str.translate: control, invisible, private and unassigned characters are dropped; each is looked up once."""

    def __missing__(self, code: int) -> int | None:
        hidden = unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Co", "Cn") and chr(code) not in "\n\t"
        self[code] = None if hidden else code
        return self[code]


_VISIBLE = _Visible()


def clean(text: str, limit: int) -> tuple[str, int]:
    """What is shown of an untrusted text, and how many characters were cut off at its end.

    Invisible and control characters are dropped (they could hide a tag), every kind of line break becomes one, tags
    lose their brackets and control tokens are opened by a bracket or a space. Mathematics and code keep their meaning.
    """
    cut = max(0, len(text) - limit)
    text = _BREAKS.sub("\n", text[:limit] if cut else text)
    text = text.translate(_VISIBLE)
    # Removing one thing must not make another: both passes run until nothing changes.
    while True:
        changed = _LOOSE_TAG.sub(r"(\1)", _TOKEN.sub("< ", _CONTROL.sub("(", text)))
        changed = steps.TAG.sub(lambda tag: tag.group().replace("[", "(").replace("]", ")"), changed)
        if changed == text:
            return text, cut
        text = changed


def boundary(*texts: str) -> str:
    """A word that none of the texts contains, equal for equal texts, so that prompts can be cached.

    Knowing how it is made does not help: a text that contained the word would be given another one.
    """
    folded = [unicodedata.normalize("NFKC", text).casefold() for text in texts]
    number = 0
    while True:
        word = hashlib.sha256("\x00".join([str(number), *texts]).encode("utf-8", "replace")).hexdigest()[:16]
        if not any(word in text for text in folded):
            return word
        number += 1


def fencer(limit: int, *texts: str) -> tuple[Callable[[str], str], str, int]:
    """For the texts of one prompt: a function that fences one of them, their boundary, and the characters cut off.

    Args: limit: characters of each text.   texts: all untrusted texts of the prompt.
    """
    shown = {text: clean(text, limit) for text in texts}
    word = boundary(*(text for text, _ in shown.values()))

    def fenced(text: str) -> str:
        return f"<<<{word}\n{shown[text][0]}\n{word}>>>"

    return fenced, word, sum(cut for _, cut in shown.values())
