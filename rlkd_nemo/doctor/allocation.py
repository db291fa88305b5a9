"""Does the Slurm allocation that this process is in hold what the layout asks for? Silent where there is none.

GPUs may be asked for in many ways. `--gpus-per-node` has a variable; for `--gres` the batch script's own node tells how
many it got, and `scontrol` knows of the other components (not from within a container). What nothing tells is not checked.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence

from rlkd_nemo.doctor.finding import Finding
from rlkd_nemo.launch.components import Component

# Field of a component, Slurm's variable, whether more than asked for is fine, and the keys to change.
_NUMBERS = (
    ("nodes", "SLURM_JOB_NUM_NODES", False, {"trainer": "trainer.num_nodes", "gsrm": "layout.gsrm.nodes"}),
    ("tasks_per_node", "SLURM_NTASKS_PER_NODE", False, {"trainer": "trainer.devices", "gsrm": "1 keeper of its services"}),
    (
        "cpus_per_task", "SLURM_CPUS_PER_TASK", True,
        {"trainer": "layout.trainer.cpus_per_task", "gsrm": "layout.gsrm.cpus_per_task"},
    ),
)  # fmt: skip
_MB_PER_GB = 1024
_ASK_S = 5.0


def ask_slurm(job: str) -> str:
    """`scontrol --oneliner show job`, a line for each component; empty where it cannot be asked."""
    command = ["scontrol", "--oneliner", "show", "job", job]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_ASK_S, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def findings(
    parts: Sequence[Component], environment: Mapping[str, str], ask: Callable[[str], str] = ask_slurm
) -> Iterator[Finding]:
    """Every number of the allocation that is not the layout's.

    Args:
        parts: the components that the job consists of, in the order of its heterogeneous groups.
        environment: of the batch script; Slurm numbers its variables by group (`..._HET_GROUP_0`) when there are several.
        ask: job number to what Slurm shows of it; called where the variables are silent about GPUs that are wanted.
    """
    if "SLURM_JOB_ID" not in environment:
        return
    groups = int(environment.get("SLURM_HET_SIZE", "1") or 1)
    if groups != len(parts):
        names = " + ".join(part.name for part in parts)
        yield Finding(
            f"the Slurm job has {groups} component(s), the layout {len(parts)} ({names}); submit with the options of this "
            "config's layout, or change layout.gsrm.nodes"
        )
        return
    for index, part in enumerate(parts):
        suffix = f"_HET_GROUP_{index}" if groups > 1 else ""
        yield from _component(part, environment, suffix)
        yield from _gpus(part, environment, suffix, index, ask)


def _component(part: Component, environment: Mapping[str, str], suffix: str) -> Iterator[Finding]:
    for field, variable, more_is_fine, keys in _NUMBERS:
        got, wanted = _number(environment.get(variable + suffix)), getattr(part, field)
        if got is None or got == wanted or (more_is_fine and got > wanted):
            continue
        yield Finding(
            f"the allocation of {part.name} has {variable}{suffix}={got}, the layout wants {wanted} ({keys[part.name]}); "
            "change one of them"
        )
    memory = _number(environment.get(f"SLURM_MEM_PER_NODE{suffix}"))
    if memory and part.mem_gb is not None and memory < part.mem_gb * _MB_PER_GB:
        yield Finding(
            f"the allocation of {part.name} has SLURM_MEM_PER_NODE{suffix}={memory} MB, the layout wants "
            f"{part.mem_gb} GB (layout.{part.name}.mem_gb); change one of them"
        )


def _gpus(
    part: Component, environment: Mapping[str, str], suffix: str, index: int, ask: Callable[[str], str]
) -> Iterator[Finding]:
    source = f"SLURM_GPUS_PER_NODE{suffix}"
    got = _number(environment.get(source))
    # With so many a task it is this process's share, which may be a task's.
    if got is None and index == 0 and "SLURM_GPUS_PER_TASK" not in environment:
        source = "SLURM_GPUS_ON_NODE"
        got = _number(environment.get(source))
    if got is None and part.gpus_per_node:
        source = f"TresPerNode (scontrol show job) of component {index}"
        got = _asked_a_node(ask(environment["SLURM_JOB_ID"]), index)
    if got is not None and got < part.gpus_per_node:
        yield Finding(
            f"the allocation of {part.name} has {source}={got}, the layout wants {part.gpus_per_node} "
            f"(layout.{part.name}.gpus_per_node); change one of them"
        )


def _asked_a_node(shown: str, index: int) -> int | None:
    """GPUs a node of component `index`: `TresPerNode=gres:gpu:h100:8`, as newer Slurms write it `gres/gpu:h100=8`."""
    for line in shown.splitlines():
        offset = re.search(r"\bHetJobOffset=(\d+)", line)
        found = re.search(r"\bTresPerNode=(?:\S*,)?gres[:/]gpu(?::[\w.-]+?)?[:=](\d+)(?=[,\s(]|$)", line)
        if int(offset[1] if offset else 0) == index:
            return int(found[1]) if found else None
    return None


def _number(value: str | None) -> int | None:
    """`8`, `h100:8`, `gpu:h100:8` or `8(x4)`: 8."""
    found = re.fullmatch(r"(?:[\w.-]+:)*(\d+)(?:\(.*\))?", value or "")
    return int(found.group(1)) if found else None
