"""The command: compose, examine, report. Exit code 0 when the run may start, 2 when something stops it."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rlkd_nemo.errors import EXIT_DONE, EXIT_INPUT

if TYPE_CHECKING:
    from rlkd_nemo.config.schema import Config
    from rlkd_nemo.doctor.finding import Finding

COMPONENTS = ("trainer", "gsrm")


def main(argv: Sequence[str] | None = None, *, description: str | None = None, cluster: bool = False) -> int:
    """Examine the config of the command line; the report goes to stdout. Returns the exit code.

    Args: cluster: the job is Slurm's, so that outside of it no port of this machine says anything.
    """
    began = time.monotonic()
    options = _parser(description).parse_intermixed_args(argv)
    # Late: --help should not wait for hydra.
    from rlkd_nemo.config.load import attempt
    from rlkd_nemo.config.rules import check

    name = options.config_name.removesuffix(".yaml")
    cfg, problems = attempt(name, options.overrides, options.config_dir)
    found: list[Finding] = []
    if cfg is not None:
        problems = [*problems, *check(cfg, supervised=options.supervised)]
        found = examine(cfg, os.environ, options.component, cluster=cluster)
    problems = list(dict.fromkeys([*problems, *(one.text for one in found if one.stops)]))
    _report(name, cfg, problems, [one.text for one in found if not one.stops], time.monotonic() - began)
    return EXIT_INPUT if problems else EXIT_DONE


def examine(
    cfg: Config, environment: Mapping[str, str], components: Sequence[str] = (), *, cluster: bool = False
) -> list[Finding]:
    """Everything about machine, files and environment; what the config itself breaks is `config.rules.check`'s.

    Args:
        components: the parts of the layout that this job consists of; empty: all of them.
        cluster: as for `main`.
    """
    from rlkd_nemo.doctor import allocation, models, places, secrets, versions
    from rlkd_nemo.launch import components as layout

    parts = [part for part in layout.components(cfg) if not components or part.name in components]
    trains = not components or "trainer" in components
    # Ports can be tried on the machine itself: the first node of the first component in a job, this one without a cluster.
    at_home = bool(components) and not cfg.layout.gsrm.nodes and not cluster
    here = list(components) if at_home else [parts[0].name] if parts and "SLURM_JOB_ID" in environment else []
    return [
        *allocation.findings(parts, environment),
        *places.inputs(cfg, trains),
        *places.outputs(cfg, models.vocabulary_rows(cfg.model.restore_from_path), trains),
        *(models.findings(cfg) if trains else ()),
        *secrets.findings(cfg, environment),
        *places.ports(cfg, here),
        *versions.findings(cfg),
    ]


def _parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit codes: 0 the run may start, 2 it may not: every problem is listed with the key to change",
    )
    parser.add_argument("overrides", nargs="*", help="as the run will have them: group=choice or key=value")
    parser.add_argument("--config-name", default="rlkd_demo", help="config to examine (default: %(default)s)")
    parser.add_argument("--config-dir", default=None, help="folder of the config (default: the conf/ of the package)")
    parser.add_argument(
        "--component",
        action="append",
        default=[],
        choices=COMPONENTS,
        help="the job consists of this part of the layout only (may be repeated); without trainer no model is looked at",
    )
    parser.add_argument("--supervised", action="store_true", help="the run is one of train_sft or train_gsrm")
    return parser


def _report(name: str, cfg: Config | None, problems: Sequence[str], notes: Sequence[str], seconds: float) -> None:
    lines = []
    if problems:
        lines.append(f"doctor: {len(problems)} problem{'s' if len(problems) > 1 else ''} with {name}:")
        lines += [f"{number:3}. {problem}" for number, problem in enumerate(problems, 1)]
    elif cfg is not None:
        lines.append(f"doctor: {name} may start: {_summary(cfg)} ({seconds:.1f} s)")
    lines += [f"note: {text}" for text in notes]
    sys.stdout.write("\n".join(lines) + "\n")


def _summary(cfg: Config) -> str:
    from rlkd_nemo.launch.components import components

    model = cfg.model
    sizes = (model.tensor_model_parallel_size, model.pipeline_model_parallel_size, model.context_parallel_size)
    world = cfg.trainer.num_nodes * (cfg.trainer.devices or 1)
    parts = [f"{part.name} {part.nodes} node(s) x {part.tasks_per_node} task(s)" for part in components(cfg)]
    return (
        f"{', '.join(parts)}; tensor {sizes[0]} x pipeline {sizes[1]} x context {sizes[2]} x data "
        f"{world // (sizes[0] * sizes[1] * sizes[2])} parallel"
    )
