"""Objectives side by side at equal rollouts: GRPO, GRPO + structure, KDRL, TRRD, TRRD + structure.

For each seed and difficulty a teacher and a student are made once, then each method starts from that student and sees
as many rollouts. Prints a table of accuracy and structure at each validation with 95 % resampling intervals, writes
JSON and a report with the curves.

    python benchmarks/objectives.py --seeds 0 1 2 --levels short long --out benchmarks/results/objectives
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NO_STRUCTURE = ["reward.structure=0"]
METHODS = {
    "grpo": ["objective=grpo", *NO_STRUCTURE],
    "grpo+structure": ["objective=grpo"],
    "kdrl": ["objective=kdrl", "objective.beta=0.3", *NO_STRUCTURE],
    "trrd": ["objective=trrd", *NO_STRUCTURE],
    "trrd+structure": ["objective=trrd"],
}
LEVELS = {"short": "quickstart", "long": "quickstart_long"}


def run_one(level: str, seed: int, method: str, out: Path, shared: Path, steps: int | None) -> dict:
    """One method from the shared student; returns its summary."""
    directory = out / f"{level}-seed{seed}-{method}"
    summary = directory / "summary.json"
    if not summary.exists():
        directory.mkdir(parents=True, exist_ok=True)
        # Base, teacher and student are the same for every method: made by the first, linked by the others.
        for stage in shared.glob("*"):
            if stage.name.split("-")[0] in ("base", "teacher", "student") and not (directory / stage.name).exists():
                (directory / stage.name).symlink_to(stage.resolve())
        overrides = METHODS[method] + [f"model.seed={seed}", f"exp_manager.exp_dir={directory}", f"name={method}"]
        if steps is not None:
            overrides.append(f"trainer.rlkd.max_steps={steps}")
        command = [sys.executable, str(ROOT / "examples/quickstart.py"), "--config-name", LEVELS[level], *overrides]
        with open(directory / "log.txt", "w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
        for stage in directory.glob("*"):
            if stage.name.split("-")[0] in ("base", "teacher", "student") and not stage.is_symlink():
                target = shared / stage.name
                if not target.exists():
                    stage.rename(target)
                    stage.symlink_to(target.resolve())
    return json.loads(summary.read_text())


def curve(directory: Path) -> list[dict]:
    """Every validation of a run."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "validation/accuracy" in line]


def cell(point: dict, name: str) -> str:
    """`value [low, high]`."""
    low, high = point[f"validation/{name}_low"], point[f"validation/{name}_high"]
    return f"{point[f'validation/{name}']:.3f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    """Run what is not there yet, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--levels", nargs="+", default=list(LEVELS), choices=list(LEVELS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--steps", type=int, default=None, help="RL steps; default: the config's")
    parser.add_argument("--out", type=Path, default=ROOT / "results/objectives")
    args = parser.parse_args()
    rows = []
    for level in args.levels:
        for seed in args.seeds:
            shared = args.out / f"{level}-seed{seed}-shared"
            shared.mkdir(parents=True, exist_ok=True)
            for method in args.methods:
                started = time.time()
                summary = run_one(level, seed, method, args.out, shared, args.steps)
                points = curve(args.out / f"{level}-seed{seed}-{method}")
                rows.append({"level": level, "seed": seed, "method": method, "summary": summary, "curve": points})
                print(
                    f"{level} seed {seed} {method:15s} test {summary['student_accuracy_before']:.3f} -> "
                    f"{summary['student_accuracy_after']:.3f}, structure {summary['structure_reward_before']:.3f} -> "
                    f"{summary['structure_reward_after']:.3f} ({time.time() - started:.0f} s)",
                    flush=True,
                )
        print(f"\n### {level}: validation accuracy / structure at each reading, 95 % intervals over problems\n")
        steps = [int(point["step"]) for point in rows[-1]["curve"]]
        print("| seed | method | " + " | ".join(f"step {step}" for step in steps) + " | test after |")
        print("|---|---|" + "---|" * (len(steps) + 1))
        for row in (r for r in rows if r["level"] == level):
            cells = [f"{cell(p, 'accuracy')} / {cell(p, 'structure')}" for p in row["curve"]]
            after = row["summary"]
            cells.append(f"{after['student_accuracy_after']:.3f} / {after['structure_reward_after']:.3f}")
            print(f"| {row['seed']} | {row['method']} | " + " | ".join(cells) + " |")
        print(flush=True)
    (args.out / "objectives.json").write_text(
        json.dumps(
            {
                "date": time.strftime("%Y-%m-%d"),
                "hardware": f"{platform.processor() or platform.machine()}, 2 ranks",
                "command": " ".join(["benchmarks/objectives.py", *sys.argv[1:]]),
                "rows": rows,
            },
            indent=1,
        )
    )
    from rlkd_nemo.report.page import write_report

    for level in args.levels:
        runs = {
            f"{row['method']} seed {row['seed']}": args.out / f"{level}-seed{row['seed']}-{row['method']}"
            for row in rows
            if row["level"] == level
        }
        target = args.out / f"{level}-report"
        target.mkdir(exist_ok=True)
        print(write_report(target, title=f"Objectives at equal rollouts, {level} chains", summary={}, runs=runs))


if __name__ == "__main__":
    main()
