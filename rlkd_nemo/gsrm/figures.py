"""How well a decomposer and a judge do on labelled rows: counts, and the shares made of them.

A reply that cannot be read lowers the parse rate; whatever else failed is counted by its name. Neither is part of any
other share: precision and recall are over the rows whose steps were found and compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlkd_nemo.gsrm.alignment import StructureResult
from rlkd_nemo.gsrm.dataset import DecompositionRow
from rlkd_nemo.types import Step


@dataclass
class StepFigures:
    """Found steps against labelled ones, aligned in order (`alignment: monotone`).

    An aim is right when its meta-reasoning agrees; a step, when its question and answer do as well.
    """

    rows: int = 0
    parsed: int = 0
    compared: int = 0
    found: int = 0
    labelled: int = 0
    aims: int = 0
    steps: int = 0
    perfect: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def parse(self) -> None:
        """The steps of one more row were found."""
        self.rows, self.parsed = self.rows + 1, self.parsed + 1

    def compare(self, steps: Sequence[Step], row: DecompositionRow, result: StructureResult | None) -> dict[str, Any]:
        """Count a parsed row. `result`: its alignment, None where either side has no steps. Returns: its own numbers."""
        aims = result.matched if result else 0
        right = sum(verdict.weight == 1 for verdict in result.verdicts) if result else 0
        perfect = right == len(steps) == len(row.steps)
        self.compared += 1
        self.found, self.labelled = self.found + len(steps), self.labelled + len(row.steps)
        self.aims, self.steps, self.perfect = self.aims + aims, self.steps + right, self.perfect + perfect
        return {"aims": aims, "right": right, "found": len(steps), "labelled": len(row.steps)}

    def fail(self, name: str, parsed: bool = False) -> None:
        """One more row has no result. `parsed`: only the comparison failed, and `parse` has counted it."""
        self.rows += not parsed
        self.failures[name] += 1

    def shares(self) -> dict[str, Any]:
        """Everything, as JSON. A share of nothing is None. `parse_rate`: of the rows that were answered."""
        return {
            "rows": self.rows,
            "parse_rate": share(self.parsed, self.parsed + self.failures["bad_reply"]),
            "compared": self.compared,
            "steps": scores(self.steps, self.found, self.labelled),
            "aims": scores(self.aims, self.found, self.labelled),
            "perfect_rows": share(self.perfect, self.compared),
            "failures": dict(self.failures),
        }


@dataclass
class VerdictFigures:
    """A judge's verdicts against labelled ones: pairs of (labelled, said). A row has one, or all of a response."""

    rows: int = 0
    said: Counter[tuple[bool, bool]] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    def add(self, verdicts: Sequence[tuple[bool, bool]]) -> None:
        """Count a row's verdicts."""
        self.rows += 1
        self.said.update(verdicts)

    def fail(self, name: str) -> None:
        """One more row has no verdict."""
        self.rows += 1
        self.failures[name] += 1

    def shares(self) -> dict[str, Any]:
        """Everything, as JSON. `false_yes`: share of the labelled no that were called yes; `false_no` likewise."""
        said = self.said
        return {
            "rows": self.rows,
            "judged": sum(said.values()),
            "agreement": share(said[True, True] + said[False, False], sum(said.values())),
            "false_yes": share(said[False, True], said[False, True] + said[False, False]),
            "false_no": share(said[True, False], said[True, False] + said[True, True]),
            "failures": dict(self.failures),
        }


def scores(right: int, found: int, labelled: int) -> dict[str, float | None]:
    """Precision, recall and their harmonic mean."""
    return {
        "precision": share(right, found),
        "recall": share(right, labelled),
        "f1": share(2 * right, found + labelled),
    }


def share(part: int, whole: int) -> float | None:
    """None of nothing."""
    return part / whole if whole else None


def table(figures: Mapping[str, Any]) -> str:
    """The figures of `decompositions` and `verdicts`, each by group and `all`, as lines of text."""
    lines = []
    for name, columns in (
        ("decompositions", ("rows", "parse_rate", "precision", "recall", "f1", "aims f1", "perfect_rows", "failures")),
        ("verdicts", ("rows", "judged", "agreement", "false_yes", "false_no", "failures")),
    ):
        groups = figures.get(name) or {}
        if groups:
            lines.append(f"{name:16}" + "".join(f"{column.replace('_', ' '):>13}" for column in columns))
        for group, shares in groups.items():
            flat = {**shares, **shares.get("steps", {}), "aims f1": shares.get("aims", {}).get("f1")}
            flat["failures"] = ", ".join(f"{n} {kind}" for kind, n in shares["failures"].items()) or "none"
            lines.append(f"{group:16}" + "".join(f"{_cell(flat[column]):>13}" for column in columns))
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
