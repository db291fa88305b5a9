"""The kinds of job: what runs on which component. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rlkd_nemo.config.duration import seconds
from rlkd_nemo.config.schema import Config
from rlkd_nemo.errors import ConfigError
from rlkd_nemo.launch.components import Component, components

KEEPER = ("-m", "rlkd_nemo.launch.keeper")


@dataclass(frozen=True)
class Job:
    """What a script of slurm/ runs.

    Attributes:
        command: arguments of Python, before the config and its overrides.
        on: component that it runs on, with all of its tasks; or one task beside the GSRM's services.
        gsrm: does it want the GSRM's component, where the layout has one?
        supervised: supervised training, which samples nothing.
    """

    command: tuple[str, ...]
    on: str
    gsrm: bool
    supervised: bool = False


JOBS = {
    "train": Job(("examples/train_rlkd.py",), "trainer", gsrm=True),
    "train_sft": Job(("examples/train_sft.py",), "trainer", gsrm=False, supervised=True),
    "train_gsrm": Job(("examples/train_gsrm.py",), "trainer", gsrm=False, supervised=True),
    "evaluate": Job(("examples/evaluate.py",), "trainer", gsrm=True),
    "serve_gsrm": Job(KEEPER, "gsrm", gsrm=True),
    "decompose": Job(("examples/decompose_references.py",), "beside_gsrm", gsrm=True),
}


@dataclass(frozen=True)
class Step:
    """One call of `srun`: a name for logs, its options, what Python runs, and in which image."""

    name: str
    options: tuple[str, ...]
    command: tuple[str, ...]
    tasks: int
    image: str


def only(kind: str) -> tuple[str, ...]:
    """The component of which a job of this kind consists, whatever else the layout has; empty: of all of the layout."""
    job = JOBS[kind]
    return ("gsrm",) if job.on != "trainer" else () if job.gsrm else ("trainer",)


def wanted(kind: str, cfg: Config) -> list[Component]:
    """The components that a job of this kind asks Slurm for; the one with the batch script first.

    Raises: ConfigError when the layout lacks one that it cannot do without.
    """
    job = JOBS[kind]
    found = {component.name: component for component in components(cfg)}
    if job.on != "trainer":
        if "gsrm" not in found:
            raise ConfigError(
                f"layout.gsrm.nodes=0, but a job of kind {kind} runs there; wanted 1 or more, or choose a layout with a GSRM"
            )
        return [found["gsrm"]]
    return [found["trainer"], *([found["gsrm"]] if job.gsrm and "gsrm" in found else [])]


def steps(kind: str, cfg: Config) -> tuple[list[Step], Step]:
    """The services, in the order of their start, and the step whose end is the job's."""
    parts = wanted(kind, cfg)
    groups = {part.name: (f"--het-group={i}",) if len(parts) > 1 else () for i, part in enumerate(parts)}
    job = JOBS[kind]
    services = [_step(part, groups[part.name], KEEPER) for part in parts if part.name == "gsrm"]
    if job.on == "gsrm":
        return [], services[0]
    if job.on == "beside_gsrm":
        # Its models hold the GPUs; what asks them needs one core of theirs.
        none = ("--gpus=0",) if parts[0].gpus_per_node else ()
        options = ("--overlap", "--nodes=1", "--ntasks=1", "--cpus-per-task=1", *none)
        return services, Step(kind, options, job.command, 1, parts[0].image)
    return services, _step(parts[0], groups["trainer"], job.command)


def _step(part: Component, group: tuple[str, ...], command: tuple[str, ...]) -> Step:
    tasks = part.nodes * part.tasks_per_node
    gpus = (f"--gpus-per-node={part.gpus_per_node}",) if part.gpus_per_node else ()
    options = (
        *group, "--overlap", f"--nodes={part.nodes}", f"--ntasks={tasks}", f"--ntasks-per-node={part.tasks_per_node}",
        f"--cpus-per-task={part.cpus_per_task}", *gpus,
    )  # fmt: skip
    return Step(part.name, options, command, tasks, part.image)


def header(kind: str, name: str, cfg: Config) -> list[str]:
    """The `#SBATCH` lines of a script: one block of options for each component."""
    lines = [
        f"#SBATCH --job-name={name}",
        "#SBATCH --output=%x-%j.log",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
        f"#SBATCH --signal=B:USR1@{cfg.layout.signal_s}",
    ]
    for number, part in enumerate(wanted(kind, cfg)):
        if number:
            lines.append("#SBATCH hetjob")
        lines.extend(f"#SBATCH {option}" for option in allocation(cfg, part))
    return lines


def allocation(cfg: Config, part: Component) -> Iterator[str]:
    """What one component asks of Slurm."""
    yield f"--time={time_limit(cfg.layout.time_limit)}"
    yield f"--nodes={part.nodes}"
    yield f"--ntasks-per-node={part.tasks_per_node}"
    yield f"--cpus-per-task={part.cpus_per_task}"
    if part.gpus_per_node:
        yield f"--gpus-per-node={part.gpus_per_node}"
    yield f"--mem={'0' if part.mem_gb is None else f'{part.mem_gb}G'}"


def time_limit(text: str) -> str:
    """NeMo's DD:HH:MM:SS as Slurm writes it, D-HH:MM:SS."""
    minutes, rest = divmod(int(seconds(text)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02d}:{minutes:02d}:{rest:02d}"
