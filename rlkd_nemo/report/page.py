"""report.html: one file with everything inside, readable without a network, a server or this package."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rlkd_nemo.gsrm.audit import ALARMS
from rlkd_nemo.report import metrics
from rlkd_nemo.report.examples import examples
from rlkd_nemo.report.files import dumps, write_atomically
from rlkd_nemo.report.plots import Plot, plots
from rlkd_nemo.report.progress import duration

log = logging.getLogger(__name__)

# (title, before, after, teacher), keys of the summary.
MEASURES = (
    ("Accuracy", "student_accuracy_before", "student_accuracy_after", "teacher_accuracy"),
    ("Structure reward", "structure_reward_before", "structure_reward_after", "teacher_structure_reward"),
)


def write_report(
    run_dir: str | Path, title: str, summary: Mapping[str, Any], runs: Mapping[str, str | Path] | None = None
) -> Path:
    """Write run_dir/report.html, whole or not at all.

    Args:
        run_dir: where the report goes; with `runs` None, the run it is about.
        summary: results. Keys of `MEASURES` (with `<key>_interval`, a pair) become cards, other scalars facts, mappings
            of mappings a table with a row each. Everything in it is shown.
        runs: name to run directory; their curves share the plots.
    Returns: the path. Everything the runs wrote is escaped: responses are untrusted text.
    Raises: InputError when a run has no metrics or a broken line.
    """
    directories = {name: Path(path) for name, path in (runs or {"": run_dir}).items()}
    lines = {name: metrics.read(path) for name, path in directories.items()}
    drawn = plots(lines)
    config = directories[""] / "config.yaml" if runs is None else None
    page = template().render(
        title=title,
        subtitle=_subtitle(lines),
        measures=measures(summary),
        facts=facts(summary),
        tables=tables(summary),
        alarms=alarms(lines),
        sections=_sections(drawn),
        several=runs is not None,
        examples={
            name: examples(path, _last_step(lines[name]), first=runs is None) for name, path in directories.items()
        },
        config=config.read_text(encoding="utf-8") if config is not None and config.is_file() else "",
        data=script_json(_data(drawn)),
        **{name: Markup(_static(file)) for name, file in ASSETS.items()},
    )
    path = Path(run_dir) / "report.html"
    write_atomically(path, page)
    log.info("report: %s (%.2f MB)", path, len(page.encode("utf-8", "replace")) / 1e6)
    return path


@functools.cache
def template() -> jinja2.Template:
    """The page's template. Compiled at the first call, which takes most of the time that a report takes: a job that
    will have little time for it in the end calls this at its start.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rlkd_nemo.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters.update(number=number, fact=fact, duration=duration)
    return environment.get_template("report.html.j2")


ASSETS = {
    "uplot_js": "uPlot.iife.min.js",
    "uplot_css": "uPlot.min.css",
    "page_js": "report.js",
    "page_css": "report.css",
}


def script_json(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in, whatever names it holds."""
    text = dumps(value, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def measures(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Cards: rows of before, after and teacher on one scale, and the part of the gap that was closed."""
    cards = []
    for title, before, after, teacher in MEASURES:
        rows: list[dict[str, Any]] = [
            {"name": name, "value": float(summary[key]), "interval": _interval(summary.get(f"{key}_interval"))}
            for name, key in (("before", before), ("after", after), ("teacher", teacher))
            if isinstance(summary.get(key), (int, float)) and math.isfinite(summary[key])
        ]
        if not rows:
            continue
        scale = max(1.0, *(row["value"] for row in rows))
        for row in rows:
            row["percent"] = 100 * max(0.0, row["value"]) / scale
            row["low"], row["high"] = (100 * max(0.0, end) / scale for end in row["interval"] or (0.0, 0.0))
        values = {row["name"]: row["value"] for row in rows}
        change = values["after"] - values["before"] if {"before", "after"} <= values.keys() else None
        gap = values["teacher"] - values["before"] if {"before", "teacher"} <= values.keys() else 0.0
        closed = change / gap if change is not None and gap > 0.01 else None
        cards.append({"title": title, "rows": rows, "change": change, "closed": closed})
    return cards


def alarms(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Measures of the audit with their bounds: the newest value, and the first step at which it was outside."""
    rows = []
    for run, lines in runs.items():
        for alarm in ALARMS:
            seen = [(line["step"], line[alarm.metric]) for line in lines if line.get(alarm.metric) is not None]
            if seen:
                rang = [step for step, value in seen if alarm.rings(value)]
                rows.append(
                    {
                        "run": run, "name": alarm.title, "bounds": alarm.bounds,
                        "value": float(seen[-1][1]), "first": rang[0] if rang else None, "times": len(rang),
                        "now": alarm.rings(seen[-1][1]), "says": alarm.says,
                    }
                )  # fmt: skip
    return rows


def facts(summary: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Everything of the summary that is neither on a card nor in a table, as (label, text)."""
    if _is_table(summary):
        return []
    on_cards = {key for _, *keys in MEASURES for name in keys for key in (name, f"{name}_interval")}
    found = []
    for key, value in summary.items():
        if isinstance(value, Mapping):
            if not _is_table(value):
                found += facts(value, f"{prefix}{key} ")
        elif prefix or key not in on_cards or not _on_a_card(summary, key):
            found.append((_name(f"{prefix}{key}"), fact(value, key)))
    return found


def tables(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Mappings of mappings as tables, an interval in its value's cell. A summary that is one itself has no title."""
    found = {"": summary} if _is_table(summary) else {key: value for key, value in summary.items() if _is_table(value)}
    out = []
    for key, rows in found.items():
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        columns = [column for column in columns if not (column.endswith("_interval") and column[:-9] in columns)]
        body = [(name, [_cell(row, column) for column in columns]) for name, row in rows.items()]
        out.append({"title": _name(key), "head": [_name(column) for column in columns], "body": body})
    return out


def number(value: float | None) -> str:
    """About four significant digits, thousands apart; `none` for a missing one."""
    if value is None:
        return "none"
    size = abs(value)
    if isinstance(value, int) or size >= 1000 or size == 0:
        return f"{value:,.0f}"
    if size < 0.01:
        return f"{value:.3g}"
    return f"{value:.3f}" if size < 10 else f"{value:.2f}" if size < 100 else f"{value:.1f}"


def fact(value: Any, key: str = "") -> str:
    """A value of the summary as text; seconds as a duration."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, (int, float)):
        if not math.isfinite(value):
            return "not finite"
        seconds = (key.startswith("seconds") or key.endswith(("_s", "_seconds"))) and not key.endswith("per_s")
        return duration(value) if seconds and value >= 10 else f"{number(value)} s" if seconds else number(value)
    if isinstance(value, (list, tuple)):
        return (" to " if key.endswith("interval") else ", ").join(fact(item) for item in value)
    return str(value)


def _name(key: str) -> str:
    return key.replace("_", " ").replace("seconds", "time")


def _cell(row: Mapping[str, Any], column: str) -> str:
    interval = row.get(f"{column}_interval")
    extra = "" if interval is None else f" ({fact(interval, 'interval')})"
    return fact(row.get(column, ""), column) + extra


def _is_table(value: Any) -> bool:
    return (
        isinstance(value, Mapping) and bool(value) and all(isinstance(row, Mapping) and row for row in value.values())
    )


def _on_a_card(summary: Mapping[str, Any], key: str) -> bool:
    value = summary.get(key.removesuffix("_interval"))
    return isinstance(value, (int, float)) and math.isfinite(value)


def _interval(value: Any) -> tuple[float, float] | None:
    return (float(value[0]), float(value[1])) if isinstance(value, (list, tuple)) and len(value) == 2 else None


def _last_step(lines: Sequence[Mapping[str, Any]]) -> int:
    return lines[-1]["step"] if lines else 0


def _subtitle(lines: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    steps = max(map(_last_step, lines.values()), default=0)
    what = f"{len(lines)} runs, up to {steps:,} steps" if len(lines) > 1 else f"{steps:,} steps"
    return f"{what} · written {time.strftime('%Y-%m-%d %H:%M')}"


def _sections(drawn: Sequence[Plot]) -> list[dict[str, Any]]:
    """Plots by section with their place in the page's data; those without a family apart."""
    sections: dict[str, dict[str, Any]] = {}
    for index, plot in enumerate(drawn):
        section = sections.setdefault(plot.section, {"name": plot.section, "wide": [], "plots": [], "more": []})
        place = "more" if not plot.known else "wide" if plot.section == "Validation" and plot.top else "plots"
        section[place].append({"index": index, "plot": plot})
    for section in sections.values():
        if not section["wide"] and not section["plots"]:
            # Nothing to fold under.
            section["plots"], section["more"] = section["more"], []
    return list(sections.values())


def _data(drawn: Sequence[Plot]) -> dict[str, Any]:
    """Points for the browser; steps that many curves share are stored once."""
    pool: dict[tuple[int, ...], int] = {}

    def short(values: Sequence[float | None] | None) -> list[float | None] | None:
        return None if values is None else [None if v is None else float(f"{v:.5g}") for v in values]

    out = []
    for plot in drawn:
        series = [
            {
                "label": s.label,
                "colour": s.colour,
                "x": pool.setdefault(tuple(s.x), len(pool)),
                "y": short(s.y),
                "low": short(s.low),
                "high": short(s.high),
            }
            for s in plot.series
        ]
        out.append({"unit": plot.unit, "top": plot.top, "series": series})
    return {"steps": [list(steps) for steps in pool], "plots": out}


def _static(name: str) -> str:
    return resources.files("rlkd_nemo.report").joinpath("static").joinpath(name).read_text(encoding="utf-8")
