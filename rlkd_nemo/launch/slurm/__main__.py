"""What the scripts of slurm/ call. Exit codes: 0 done, 2 wrong config or input, else as each command says."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rlkd_nemo.errors import EXIT_DONE, EXIT_ERROR, RlkdError
from rlkd_nemo.launch.cli import load_checked, parser
from rlkd_nemo.launch.slurm.ends import judge
from rlkd_nemo.launch.slurm.jobs import JOBS, header, only
from rlkd_nemo.launch.slurm.plan import assignments
from rlkd_nemo.launch.slurm.ready import await_ready
from rlkd_nemo.launch.slurm.submit import submit


def _doctor(options: argparse.Namespace, rest: list[str]) -> int:
    # Late: the others need nothing of it.
    from rlkd_nemo.doctor.run import main as examine

    flags = ["--supervised"] if JOBS[options.kind].supervised else []
    return examine([*rest, *flags, *(f"--component={name}" for name in only(options.kind))], cluster=True)


def _header(options: argparse.Namespace, rest: list[str]) -> int:
    wanted = parser("rlkd_demo", None).parse_intermixed_args(rest)
    cfg = load_checked(wanted, supervised=JOBS[options.kind].supervised)
    sys.stdout.write("\n".join(header(options.kind, wanted.config_name, cfg)) + "\n")
    return EXIT_DONE


def _plan(options: argparse.Namespace, rest: list[str]) -> int:
    wanted = parser("rlkd_demo", None).parse_intermixed_args(rest)
    cfg = load_checked(wanted, supervised=JOBS[options.kind].supervised)
    sys.stdout.write("\n".join(assignments(options.kind, cfg, os.environ, sys.stdin.read())) + "\n")
    return EXIT_DONE


def _wait(options: argparse.Namespace, rest: list[str]) -> int:
    wrong = await_ready(options.url, options.deadline_s)
    if wrong is not None:
        sys.stderr.write(
            f"{options.url} is not ready after {options.deadline_s:g} s (gsrm.server.startup_s): {wrong}\n"
        )
        return EXIT_ERROR
    return EXIT_DONE


def _ends(options: argparse.Namespace, rest: list[str]) -> int:
    return judge(options.folder, options.tasks, options.code)


def _submit(options: argparse.Namespace, rest: list[str]) -> int:
    return submit(options.script, rest, options.sbatch or [])


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run one command. Returns its exit code."""
    top = argparse.ArgumentParser(prog="python -m rlkd_nemo.launch.slurm", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace, list[str]], int], told: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=told, description=told)
        found.set_defaults(run=run, takes_config=name in ("doctor", "header", "plan", "submit"))
        return found

    for name, run, told in (
        ("doctor", _doctor, "examples/doctor.py inside a job of this kind"),
        ("header", _header, "the #SBATCH lines of a kind of job; --config-name and overrides follow"),
        ("plan", _plan, "this attempt as shell assignments; `scontrol --oneliner show node` on stdin"),
    ):
        command(name, run, told).add_argument("kind", choices=sorted(JOBS))
    wait = command("wait", _wait, "wait until a service answers 200; 1 when it does not in time")
    wait.add_argument("url")
    wait.add_argument("--deadline-s", type=float, required=True)
    ends = command("ends", _ends, "say how a step's ranks ended; the code that they agree on")
    ends.add_argument("folder", type=Path)
    ends.add_argument("--tasks", type=int, required=True)
    ends.add_argument("--code", type=int, required=True, help="what srun ended with")
    sub = command("submit", _submit, "check the config, then sbatch with the options that it asks for")
    sub.add_argument("script")
    sub.add_argument("--sbatch", action="append", metavar="OPTION", help="e.g. --sbatch=--time=30; may be repeated")
    options, rest = top.parse_known_args(argv)
    if rest and not options.takes_config:
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return options.run(options, rest)
    except RlkdError as err:
        sys.stderr.write("".join(f"error: {line}\n" for line in str(err).splitlines()))
        return err.exit_code


if __name__ == "__main__":
    sys.exit(main())
