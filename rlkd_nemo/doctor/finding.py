"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One sentence: what is wrong, what was found, what was wanted, which key. A note does not stop the run."""

    text: str
    stops: bool = True


def note(text: str) -> Finding:
    """Worth knowing; the run may start."""
    return Finding(text, stops=False)
