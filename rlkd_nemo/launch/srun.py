"""A task of `srun` as a rank: Slurm's variables told as those that torchrun would set. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, MutableMapping

# Where a job that names none lets its ranks meet: out of the ephemeral range, another port for each of 10,000 jobs.
_FIRST_PORT, _PORTS = 20000, 10000

_GROUP = re.compile(r"\[([^\]]*)\]")


def adopt(environment: MutableMapping[str, str]) -> bool:
    """In one of several tasks of `srun`, set RANK and what belongs to it, unless somebody has.

    One task, and the batch script itself, are no rank: there our own launcher starts the ranks of the machine.
    MASTER_ADDR and MASTER_PORT stay as they are where they are set (slurm/common.sh does); else the ranks meet on the
    step's first node, on a port made from the job's number.

    Returns: is this process a rank that `srun` started?
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if "RANK" in environment or "SLURM_STEP_ID" not in environment or int(tasks) < 2:
        return False
    per_node = _tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
    node = int(environment["SLURM_NODEID"])
    environment.update(
        {
            "RANK": environment["SLURM_PROCID"],
            "WORLD_SIZE": tasks,
            "LOCAL_RANK": environment["SLURM_LOCALID"],
            "LOCAL_WORLD_SIZE": str(per_node[node]),
            "GROUP_RANK": str(node),
        }
    )
    environment.setdefault("MASTER_ADDR", next(hosts(environment["SLURM_STEP_NODELIST"])))
    environment.setdefault("MASTER_PORT", str(port(int(environment["SLURM_JOB_ID"]))))
    # As our own launcher: without it each rank would start a thread for every core.
    environment.setdefault("OMP_NUM_THREADS", environment.get("SLURM_CPUS_PER_TASK", "1"))
    return True


def port(job: int) -> int:
    """Where the ranks of a job meet."""
    return _FIRST_PORT + job % _PORTS


def hosts(nodes: str) -> Iterator[str]:
    """The names in Slurm's short form, in its order: `n[1-2,7],gpu-[01-02]-a` gives n1, n2, n7, gpu-01-a, gpu-02-a."""
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes):
        yield from _expand(part)


def _expand(part: str) -> Iterator[str]:
    group = _GROUP.search(part)
    if group is None:
        yield part
        return
    before, after = part[: group.start()], part[group.end() :]
    for item in group[1].split(","):
        first, _, last = item.partition("-")
        for number in range(int(first), int(last or first) + 1):
            for rest in _expand(after):
                yield f"{before}{number:0{len(first)}d}{rest}"


def _tasks_per_node(short: str) -> list[int]:
    """`8(x2),4` gives 8, 8, 4."""
    found: list[int] = []
    for part in short.split(","):
        tasks, _, times = part.partition("(x")
        found += [int(tasks)] * int(times.rstrip(")") or 1)
    return found
