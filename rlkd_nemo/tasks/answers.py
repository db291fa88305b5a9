"""Final answers: where they stand in a response, and when two texts say the same."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_BLOCK = re.compile(r"<answer>((?:(?!<answer>|</answer>).)*)</answer>", re.DOTALL | re.IGNORECASE)
_BRACE = re.compile(r"\\boxed\s?\{|\{|\}")
_SENTENCE_MARK = re.compile(r"(?<=[^\s,;:.?])[,;:.?]+(?=\s|$)")
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?(?:e[-+]?\d{1,3})?")
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{(-?\d+)\}\{(-?\d+)\}")
_LONGEST_NUMBER = 200  # characters; longer ones are compared as text
_WRAPPING = " \t\n\r\"'`*_$\u201c\u201d\u2018\u2019"  # straight and curly quotes, markdown, LaTeX


def final_answer(response: str) -> str | None:
    r"""The answer a response commits itself to, stripped; None when it gives none.

    The last whole <answer>...</answer>, and in it the last \boxed{...} if it has one; without such a block the last
    \boxed{...} after the thinking. The last one counts, so listing several answers is one guess.
    """
    after = response[response.rfind("</think>") + len("</think>") :] if "</think>" in response else response
    blocks = _BLOCK.findall(after)
    boxed = _last_boxed(blocks[-1] if blocks else after)
    if boxed is not None:
        return boxed.strip()
    return blocks[-1].strip() if blocks else None


def equal(left: str, right: str) -> bool:
    """Equal as numbers where both are numbers, else as normalised texts."""
    first, second = number(left), number(right)
    if first is not None and second is not None:
        return first == second
    return normalised(left) == normalised(right)


def normalised(text: str) -> str:
    """Case, white space, wrapping quotes or markdown, and punctuation that ends a word do not count.

    Operators do: `2*3` and `2+3` stay apart, and so do `5!` and `5`.
    """
    folded = unicodedata.normalize("NFKC", text).casefold().strip(_WRAPPING)
    # The published examples end meta lines in ".-" (arXiv:2505.16142, released prompts).
    folded = re.sub(r"\.-$", "", folded)
    folded = _SENTENCE_MARK.sub("", folded).strip(_WRAPPING)
    joined = " ".join(folded.split())
    return re.sub(r" ?([-+*/^=<>()\[\]{}|]) ?", r"\1", joined)


def number(text: str) -> Fraction | None:
    r"""The exact value of an integer, decimal, `a/b` or `\frac{a}{b}`; None for anything else."""
    plain = text.replace("\\(", "").replace("\\)", "").strip(_WRAPPING).rstrip(".").replace("\u2212", "-")
    plain = _FRACTION.sub(r"\1\2/\3", plain).replace(" ", "").lower()
    if not plain or len(plain) > _LONGEST_NUMBER or not plain.isascii():
        return None
    upper, slash, lower = plain.partition("/")
    values = []
    for part in (upper, lower) if slash else (upper,):
        if not _NUMBER.fullmatch(part) or not any(c.isdigit() for c in part.partition("e")[0]):
            return None
        values.append(Fraction(part.replace(",", "")))
    if not slash:
        return values[0]
    return values[0] / values[1] if values[1] else None


def _last_boxed(text: str) -> str | None:
    r"""Content of the \boxed{...} that opens last among those whose braces close."""
    open_braces: list[int | None] = []  # where the content of a box starts; None: another brace
    last: tuple[int, int] | None = None
    for brace in _BRACE.finditer(text):
        if brace.group() != "}":
            open_braces.append(brace.end() if brace.group() != "{" else None)
        elif open_braces:
            start = open_braces.pop()
            if start is not None and (last is None or start > last[0]):
                last = (start, brace.start())
    return None if last is None else text[last[0] : last[1]]
