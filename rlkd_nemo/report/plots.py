"""Which metrics share a plot, and the points each plot gets.

A metric that no family knows gets a plot of its own under its area, so everything in metrics.jsonl can be seen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_POINTS = 1000  # a series, more than a laptop screen has columns in a plot
VALUE_BUDGET = 120_000  # numbers in a report, about 1 MB of JSON

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """Metrics whose names match `pattern` (whole name) share one plot.

    Attributes:
        unit: of the y axis.
        top: the y axis reaches at least so far; None: as far as the data.
        absent_is_zero: a step that does not name the metric had none of it (counts by type).
        note: one sentence for the reader.
    """

    section: str
    title: str
    pattern: str
    unit: str = ""
    top: float | None = None
    absent_is_zero: bool = False
    note: str = ""


HELD_OUT = "Held-out problems; band: 95 % interval."
FAMILIES = (
    Family("Validation", "Accuracy", "validation/accuracy", "share", 1.0, note=HELD_OUT),
    Family("Validation", "Structure reward", "validation/structure", "", 1.0, note=HELD_OUT),
    Family("Validation", "Response length", "validation/length_tokens", "tokens"),
    Family("Validation", "Entropy", "validation/entropy", "nats a token"),
    Family("Validation", "Truncated responses", "validation/truncated_fraction", "share"),
    Family("Validation", "Samples without a score", "validation/failed", "samples"),
    Family("Reward", "Reward, weighted sum", "reward/total"),
    Family("Reward", "Reward by component", "reward/(outcome|structure|format|tag)", "", 1.0),
    Family("Reward", "Structure and outcome, correlation", "reward/structure_outcome_correlation"),
    Family("Reward", "Failures by type", "reward/failures_.*", "rollouts", absent_is_zero=True),
    Family("Reward", "Rollouts without a reward", "reward/failed_fraction", "share"),
    Family("Reward", "Values a component gave", "reward/.*_count", "rollouts"),
    Family("Audit", "Canaries: references as responses", "audit/canary_.*", "share of steps", 1.0),
    Family("Audit", "Verdicts that change with the order", "audit/order_swap_disagreement", "share", 1.0),
    Family("Audit", "Steps of responses over references", "audit/step_inflation"),
    Family("Audit", "Probes without an answer", "audit/probes_failed", "probes"),
    Family("Objective", "Loss", "loss/(total|loss|policy_loss|kd_loss)"),
    Family("Objective", "Gradient norm", "loss/grad_norm"),
    Family("Objective", "KL divergence", "loss/kl_.*", "nats a token", note="k3 estimate on sampled tokens."),
    Family("Objective", "Entropy", "loss/entropy", "nats a token"),
    Family("Objective", "Clipped tokens", "loss/clip_fraction_.*", "share", note="By side and sign of advantage."),
    Family("Objective", "Clipped tokens by cause", "loss/clip_by_.*", "share"),
    Family("Objective", "Influence of the teacher", "loss/teacher_.*_(?:share|fraction)", "share"),
    Family("Objective", "Student against teacher", "loss/teacher_gap_.*", "nats a token"),
    Family("Objective", "Ratio, mean", "loss/(importance_)?ratio_mean"),
    Family("Objective", "Ratio, largest", "loss/(importance_)?ratio_max"),
    Family("Objective", "Learning rate", "loss/learning_rate"),
    Family("Rollouts", "Response length", "rollout/length_tokens", "tokens"),
    Family("Rollouts", "Truncated responses", "rollout/truncated_fraction", "share"),
    Family("Rollouts", "Groups of equal reward", "rollout/zero_advantage_groups", "share", note="They teach nothing."),
    Family("Rollouts", "Throughput", "rollout/tokens_per_s", "tokens/s"),
    Family("Rollouts", "Sampler against trainer", "rollout/log_prob_gap_.*", "nats", note="The same weights."),
    Family("Time", "Time by stage", "time/(?!step_s$)(rollout|score|log_probs|teach|update|sync|validate|.*)_s", "s"),
    Family("Time", "Whole step", "time/step_s", "s"),
)  # fmt: skip
AREAS = {
    "validation": "Validation",
    "reward": "Reward",
    "audit": "Audit",
    "loss": "Objective",
    "rollout": "Rollouts",
    "time": "Time",
}
UNITS = {"_s": "s", "_tokens": "tokens", "_fraction": "share", "_count": "count", "_per_s": "per second"}


@dataclass
class Series:
    """One curve. `x` steps; `y` values, None where the log holds null; `low`, `high` its interval, if it has one.

    `colour` counts runs, so that a run has one colour in every plot, or curves where there is one run.
    """

    label: str
    x: list[int]
    y: list[float | None]
    low: list[float | None] | None = None
    high: list[float | None] | None = None
    colour: int = 0


@dataclass
class Plot:
    """One plot; `known` is False for metrics without a family, which the page shows folded."""

    section: str
    title: str
    unit: str
    top: float | None
    note: str
    known: bool
    series: list[Series] = field(default_factory=list)


def plots(runs: Mapping[str, Sequence[Line]]) -> list[Plot]:
    """Plots of one run, a curve a metric; of several, a curve a run and a plot a metric.

    Args: runs: name of a run to its lines of metrics.jsonl.
    Returns: by section in the order of `FAMILIES`, then areas without a family; a plot without points is left out.
    """
    found: dict[tuple[Any, ...], Plot] = {}
    names = dict.fromkeys(name for lines in runs.values() for line in lines for name in line)
    shown = [name for name in names if name not in ("step", "time") and not _is_bound(name, names)]
    limit = min(MAX_POINTS, max(50, VALUE_BUDGET // max(1, len(shown) * len(runs))))
    for order, name in sorted((_order(name), name) for name in shown):
        family = FAMILIES[order[0]] if order[0] < len(FAMILIES) else None
        for position, (run, lines) in enumerate(runs.items()):
            series = _series(name, lines, names, limit, family is not None and family.absent_is_zero)
            if not any(value is not None for value in series.y):
                continue
            alone = len(runs) == 1
            series.label = label(name, family) if alone else run
            key = (order[0], "" if alone and family else name)
            plot = found.setdefault(key, _empty_plot(name, family, whole_family=alone))
            series.colour = len(plot.series) if alone else position
            plot.series.append(series)
    return sorted(found.values(), key=lambda plot: _section_order(plot.section))


def label(name: str, family: Family | None = None) -> str:
    """`loss/clip_fraction_high` as `clip fraction high`; under its family's title `high` says enough.

    A unit at the end is dropped, for the axis has it.
    """
    text = name.partition("/")[2] or name
    if family is not None:
        if family.pattern.endswith("_.*"):
            text = name.removeprefix(family.pattern.removesuffix(".*"))
        if family.unit in ("share", "rollouts"):
            text = re.sub(r"_(share|fraction|count)$", "", text)
    return re.sub(r"_(s|tokens)$", "", text).replace("_", " ")


def thin(
    x: Sequence[int], y: Sequence[float | None], limit: int, largest: bool
) -> tuple[list[int], list[float | None]]:
    """At most `limit` points: equal buckets of consecutive points, each its mean (or maximum) at its last step."""
    if len(x) <= limit:
        return list(x), list(y)
    size = -(-len(x) // limit)
    steps, values = [], []
    for start in range(0, len(x), size):
        bucket = [value for value in y[start : start + size] if value is not None]
        steps.append(x[min(start + size, len(x)) - 1])
        values.append(None if not bucket else max(bucket) if largest else sum(bucket) / len(bucket))
    return steps, values


def _empty_plot(name: str, family: Family | None, *, whole_family: bool) -> Plot:
    if family is None:
        area = name.partition("/")[0] if "/" in name else "other"
        unit = next((unit for suffix, unit in reversed(UNITS.items()) if name.endswith(suffix)), "")
        return Plot(AREAS.get(area, area.capitalize()), label(name).capitalize(), unit, None, "", known=False)
    only_one = whole_family or not re.search(r"[(*|]", family.pattern)
    title = family.title if only_one else f"{family.title}: {label(name, family)}"
    return Plot(family.section, title, family.unit, family.top, family.note, known=True)


def _series(name: str, lines: Sequence[Line], names: Mapping[str, None], limit: int, absent_is_zero: bool) -> Series:
    # "Absent is zero" holds on the steps that log the metric's area at all.
    area = f"{name.partition('/')[0]}/"
    rows = [line for line in lines if name in line or (absent_is_zero and any(key.startswith(area) for key in line))]
    x = [line["step"] for line in rows]
    steps, values = thin(x, [line.get(name, 0.0) for line in rows], limit, largest=name.endswith("_max"))
    series = Series(name, steps, values)
    if f"{name}_low" in names and f"{name}_high" in names:
        _, series.low = thin(x, [line.get(f"{name}_low") for line in rows], limit, largest=False)
        _, series.high = thin(x, [line.get(f"{name}_high") for line in rows], limit, largest=False)
    return series


def _is_bound(name: str, names: Mapping[str, None]) -> bool:
    """Is it an end of another metric's interval?"""
    base, _, end = name.rpartition("_")
    return end in ("low", "high") and base in names and {f"{base}_low", f"{base}_high"} <= names.keys()


def _order(name: str) -> tuple[int, int]:
    """(position of the family, position among the alternatives its pattern lists)."""
    for position, family in enumerate(FAMILIES):
        if match := re.fullmatch(family.pattern, name):
            return position, family.pattern.find(match[1]) % 1000 if match.lastindex else 0
    return len(FAMILIES), 0


def _section_order(section: str) -> int:
    known = list(dict.fromkeys(family.section for family in FAMILIES))
    return known.index(section) if section in known else len(known)
