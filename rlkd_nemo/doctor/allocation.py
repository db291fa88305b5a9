"""Does the Slurm allocation that this process is in hold what the layout asks for? Silent where there is none."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from rlkd_nemo.doctor.finding import Finding
from rlkd_nemo.launch.components import Component

# Field of a component, Slurm's variable, whether more than asked for is fine, and the keys to change.
_NUMBERS = (
    ("nodes", "SLURM_JOB_NUM_NODES", False, {"trainer": "trainer.num_nodes", "gsrm": "layout.gsrm.nodes"}),
    ("tasks_per_node", "SLURM_NTASKS_PER_NODE", False, {"trainer": "trainer.devices", "gsrm": "1 keeper of its services"}),
    (
        "gpus_per_node", "SLURM_GPUS_PER_NODE", True,
        {"trainer": "layout.trainer.gpus_per_node", "gsrm": "layout.gsrm.gpus_per_node"},
    ),
    (
        "cpus_per_task", "SLURM_CPUS_PER_TASK", True,
        {"trainer": "layout.trainer.cpus_per_task", "gsrm": "layout.gsrm.cpus_per_task"},
    ),
)  # fmt: skip
_MB_PER_GB = 1024


def findings(parts: Sequence[Component], environment: Mapping[str, str]) -> Iterator[Finding]:
    """Every number of the allocation that is not the layout's.

    Args:
        parts: the components that the job consists of, in the order of its heterogeneous groups.
        environment: of the batch script; Slurm numbers its variables by group (`..._HET_GROUP_0`) when there are several.
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


def _number(value: str | None) -> int | None:
    """`8`, `h100:8`, `gpu:h100:8` or `8(x4)`: 8."""
    found = re.fullmatch(r"(?:[\w.-]+:)*(\d+)(?:\(.*\))?", value or "")
    return int(found.group(1)) if found else None
