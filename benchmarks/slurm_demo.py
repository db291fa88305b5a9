"""A job on a real Slurm, on this machine: four slurmd on loopback, told to stop half-way, requeued, done.

    make demo-slurm [ARGS="objective=grpo"]

The trainer's two ranks are on two nodes, the GSRM's server on a third, with rules for decomposer and judge. Starts from
the quickstart's student and teacher where `make demo` has made them, else from two small models that only show the way.
Leaves results/slurm_demo/report.html and the logs of every component and attempt. Wants root.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.slurm.bed import Bed, bed, why_not

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "results" / "slurm_demo"
MADE = ROOT / "results" / "quickstart"
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "GONE")
# For models that only show the way.
SMALL = [
    "model.num_layers=2", "model.hidden_size=32", "model.ffn_hidden_size=48", "rlkd.num_prompts=8", "rlkd.group_size=8",
    "validation.num_problems=20",
]  # fmt: skip
SHORT = [
    "demo.base.steps=200", "demo.teacher.steps=60", "demo.student.steps=30", "demo.min_teacher_accuracy=0",
    "demo.test_problems=4", "demo.test_samples=1", "trainer.rlkd.max_steps=1", "model.tensor_model_parallel_size=1",
]  # fmt: skip


def models() -> list[str]:
    """Overrides that name student and teacher."""
    found = [sorted(MADE.glob(f"{name}/checkpoints/step-*")) for name in ("student", "teacher")]
    if all(found):
        print(f"student and teacher: those of {MADE.relative_to(ROOT)}")
        return [f"{key}.restore_from_path={paths[-1]}" for key, paths in zip(("model", "teacher"), found)]
    folder = FOLDER / "models"
    print("student and teacher: small ones, made now (`make demo` makes better ones)")
    command = [sys.executable, "examples/quickstart.py", *SMALL, *SHORT, f"exp_manager.exp_dir={folder}"]
    subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    paths = [sorted(folder.glob(f"{name}/checkpoints/step-*"))[-1] for name in ("student", "teacher")]
    return [*SMALL, f"model.restore_from_path={paths[0]}", f"teacher.restore_from_path={paths[1]}"]


class Watch:
    """Prints what is new in the job's log and in the progress of its first rank."""

    def __init__(self, job: str) -> None:
        self.job, self.seen = job, dict[Path, int]()

    def new(self) -> None:
        """Everything since the last call."""
        for file in [FOLDER / "job.log", *sorted(FOLDER.glob(f"run/logs/trainer.{self.job}-*.0.log"))]:
            lines = file.read_text().splitlines() if file.exists() else []
            for line in lines[self.seen.get(file, 0) :]:
                if file.name == "job.log":
                    print(f"  job      {line}")
                elif any(word in line for word in ("report.progress:", "resumed from", "SIGUSR1")):
                    print(f"  trainer  {line.split(': ', 1)[-1]}")
            self.seen[file] = len(lines)


def show(cluster: Bed, options: list[str], arguments: list[str]) -> str:
    """Submit, interrupt once, and follow to the end. Returns the job's last state."""
    script = ["slurm/submit.sh", "slurm/rlkd_70b_to_8b.sh", *[f"--sbatch={option}" for option in options]]
    said = cluster.run(*script, *arguments, RLKD_PYTHON=sys.executable)
    print(said)
    job = said.splitlines()[-1]
    watch, metrics, told = Watch(job), FOLDER / "run" / "metrics.jsonl", False
    while (state := cluster.state(job)) not in OVER:
        watch.new()
        if not told and metrics.exists() and metrics.read_text().count("\n") > 8:
            told = True
            print(cluster.run("squeue"))
            print(f"\n$ scancel --signal=USR1 --batch {job}        # what Slurm sends before the time is up\n")
            cluster.run("scancel", "--signal=USR1", "--batch", job)
        time.sleep(0.5)
    watch.new()
    return state


def main() -> int:
    """The whole demonstration. Returns the exit code."""
    reason = why_not()
    if reason:
        print(f"no Slurm can be started here: {reason}", file=sys.stderr)
        return 2
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    names = models()
    with bed() as cluster:
        print(cluster.run("sinfo"), "\n")
        state = show(
            cluster,
            ["--parsable", f"--output={FOLDER / 'job.log'}"],
            [
                "--config-name=rlkd_demo", "layout=cpu_loopback", *names, f"exp_manager.exp_dir={FOLDER / 'run'}",
                *sys.argv[1:],
            ],
        )  # fmt: skip
    print(f"\n{state}; report: {(FOLDER / 'run' / 'report.html').relative_to(ROOT)}")
    return 0 if state == "COMPLETED" else 1


if __name__ == "__main__":
    sys.exit(main())
