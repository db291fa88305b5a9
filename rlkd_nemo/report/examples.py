"""A handful of rollouts for a reader: the best and the worst of the first and the last step, steps side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rlkd_nemo.report import audit

MAX_CHARACTERS = 6000  # of a prompt or a response on the page; the audit file has the rest
MAX_ROWS = 60


def examples(run_dir: str | Path, last_step: int, *, first: bool = True) -> list[dict[str, Any]]:
    """Rollouts to show, oldest first; empty when the run kept none.

    Args:
        last_step: files of later steps belong to an earlier, longer run of the same folder and are left out.
        first: show the first step as well, not only the last.
    """
    files = {step: path for step, path in audit.files(run_dir).items() if step <= last_step}
    if not files:
        return []
    chosen = list(dict.fromkeys([min(files), max(files)] if first else [max(files)]))
    return [shown for step in chosen for shown in _of_step(audit.read(files[step]))]


def _of_step(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    scored = [row for row in rows if row.get("reward") is not None]
    failed = [row for row in rows if row.get("reward") is None]
    picked = []
    if scored:
        # The longest reference among equals says most; the worst is preferred where there is something to compare.
        best = max(scored, key=lambda row: (row["reward"], len(row.get("teacher_steps") or [])))
        worst = min(scored, key=lambda row: (row["reward"], not row.get("student_steps")))
        picked.append(("best", best))
        if worst["reward"] < best["reward"]:
            picked.append(("worst", worst))
    if failed:
        picked.append(("without a reward", failed[0]))
    return [_shown(kind, row) for kind, row in picked]


def _shown(kind: str, row: Mapping[str, Any]) -> dict[str, Any]:
    response, prompt = str(row.get("response", "")), str(row.get("prompt", ""))
    return {
        **row,
        "kind": kind,
        "prompt": prompt[:MAX_CHARACTERS],
        "response": response[:MAX_CHARACTERS],
        "cut": max(0, len(response) - MAX_CHARACTERS) + max(0, len(prompt) - MAX_CHARACTERS),
        "components": [
            {"name": name, "value": part.get("value"), "failure": (part.get("failure") or "").replace("_", " ")}
            for name, part in (row.get("components") or {}).items()
        ],
        **side_by_side(row),
    }


def side_by_side(row: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of the two-column table: student step, teacher step and how they stand to each other.

    `state` is `same` before the parting (`half` where the step got part of its credit only, because question or answer
    disagree), `parts` at it, `after` behind it, and `` when steps were not compared.
    """
    student, teacher = row.get("student_steps") or [], row.get("teacher_steps") or []
    parts_at = row.get("parts_at")
    credits = ((row.get("components") or {}).get("structure") or {}).get("detail", {}).get("weights") or []
    compared = bool(teacher) and (parts_at is not None or bool(student))
    pairs = []
    for index, (mine, theirs) in enumerate(zip_longest(student, teacher)):
        if not compared:
            state = ""
        elif parts_at is None:
            state = "same" if theirs is not None else "after"
        else:
            state = "same" if index < parts_at else "parts" if index == parts_at else "after"
        if state == "same" and index < len(credits) and credits[index] < 1:
            state = "half"
        pairs.append({"number": index + 1, "student": _step(mine), "teacher": _step(theirs), "state": state})
    return {"pairs": pairs[:MAX_ROWS], "more_pairs": max(0, len(pairs) - MAX_ROWS)}


def _step(step: Any) -> dict[str, str] | None:
    """A step as meta, question and answer; one without any of them is no step."""
    if step is None:
        return None
    if isinstance(step, str):
        step = {"meta": step}
    found = {key: re.sub(r"\s+", " ", str(step.get(key) or "")).strip()[:600] for key in ("meta", "question", "answer")}
    return found if any(found.values()) else None
