"""rollouts/step-00012.jsonl: why each rollout got its reward."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlkd_nemo.errors import InputError
from rlkd_nemo.report.files import dumps, write_atomically
from rlkd_nemo.types import Rollout, Score


class RolloutAudit:
    """Writes a file a step, whole or not at all, one JSON object a rollout.

    Args:
        run_dir: the run's folder.
        limit: rollouts a step, the first ones, so that groups stay whole; -1: all; 0: none, and no file.
        start_step: files of later steps, left by an interrupted process, are removed; None: files are only replaced.
    """

    def __init__(self, run_dir: str | Path, limit: int = -1, start_step: int | None = None) -> None:
        self.directory, self.limit = Path(run_dir) / "rollouts", limit
        if start_step is not None:
            for step, path in files(run_dir).items():
                if step > start_step:
                    path.unlink()

    def write(
        self,
        step: int,
        rollouts: Sequence[Rollout],
        scores: Sequence[Score],
        advantages: Sequence[float] | None = None,
    ) -> Path | None:
        """Keep the rollouts of `step`; scores and advantages row by row. Returns the file, None at limit 0."""
        if not len(rollouts) == len(scores) or (advantages is not None and len(advantages) != len(rollouts)):
            raise ValueError(f"{len(rollouts)} rollouts, {len(scores)} scores; wanted a score and an advantage each")
        number = len(rollouts) if self.limit < 0 else min(self.limit, len(rollouts))
        if number == 0:
            return None
        lines = [
            dumps(record(step, rollouts[i], scores[i], None if advantages is None else float(advantages[i])))
            for i in range(number)
        ]
        path = self.directory / f"step-{step:05d}.jsonl"
        write_atomically(path, "".join(line + "\n" for line in lines))
        return path


def record(step: int, rollout: Rollout, score: Score, advantage: float | None) -> dict[str, Any]:
    """One rollout as plain data; the structure component's steps are lifted out of its detail.

    `parts_at`: index of the first teacher step that the student does not follow; None when it follows to the end, or
    when the steps were not compared.
    """
    detail = score.components["structure"].detail if "structure" in score.components else {}
    return {
        "step": step,
        "problem_id": rollout.problem.id,
        "group": rollout.group,
        "sample": rollout.sample,
        "prompt": rollout.problem.prompt,
        "answer": rollout.problem.answer,
        "response": rollout.text,
        "length_tokens": len(rollout.response_ids),
        "truncated": rollout.truncated,
        "weight_version": rollout.weight_version,
        "reward": score.reward,
        "advantage": advantage,
        "components": {
            name: {"value": part.value, "failure": part.failure.value if part.failure else None, "detail": part.detail}
            for name, part in score.components.items()
        },
        "student_steps": detail.get("student_steps", []),
        "teacher_steps": detail.get("teacher_steps", []),
        "parts_at": detail.get("parts_at"),
    }


def files(run_dir: str | Path) -> dict[int, Path]:
    """The audit files of a run by step, ascending."""
    found = Path(run_dir).glob("rollouts/step-*.jsonl")
    return dict(sorted((int(path.stem.removeprefix("step-")), path) for path in found))


def read(path: Path) -> list[dict[str, Any]]:
    """Rollouts of one audit file. Raises: InputError naming the broken line."""
    rows = []
    # Not splitlines: a response may hold Unicode's own line separators.
    for number, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as err:
            raise InputError(f"{path}:{number}: not a rollout ({err})") from err
    return rows
