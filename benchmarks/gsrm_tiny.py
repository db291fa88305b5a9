"""The figures of a finished `make demo-gsrm` as a record: what the tiny GSRM reached behind a real vLLM.

python benchmarks/gsrm_tiny.py results/demo_gsrm --vllm "vLLM 0.32.0 on CPU" --out benchmarks/results/gsrm_tiny.json
"""

import argparse
import datetime
import json
import os
import platform
from pathlib import Path

KEPT = (
    "gsrm_", "reward_", "seconds_", "student_accuracy_before", "student_accuracy_after", "teacher_accuracy",
    "structure_reward_before", "structure_reward_after", "rollouts", "rl_steps", "objective", "seed", "stages_made",
)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="exp_manager.exp_dir of the demo")
    parser.add_argument("--vllm", required=True, help="which vLLM it ran with")
    parser.add_argument("--load", default="", help="what else the machine did meanwhile")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    summary = json.loads((options.directory / "summary.json").read_text())
    made = datetime.datetime.fromtimestamp((options.directory / "summary.json").stat().st_mtime)
    record = {
        "date": made.date().isoformat(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores" + (f", {options.load}" if options.load else ""),
        "command": "make demo-gsrm",
        "vllm": options.vllm,
        **{
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in summary.items()
            if name.startswith(KEPT) and not name.endswith("_interval")
        },
    }
    options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
