"""The command line that all examples share: parse, check, and only then start ranks.

Exit codes: 0 done, 2 wrong config or input, 3 stopped by a signal and saved, 1 anything else.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rlkd_nemo.errors import EXIT_DONE, ConfigError, RlkdError
from rlkd_nemo.launch import local, rank, srun

if TYPE_CHECKING:
    from rlkd_nemo.config.schema import Config


def cli(
    main: Callable[[Config], Any],
    default: str,
    *,
    ranks: Callable[[Config], int] | None = None,
    description: str | None = None,
    supervised: bool = False,
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """Run `main(cfg)` on every rank and exit with the code they agreed on. A wrong config stops it before any starts.

    Args:
        default: config name used without --config-name.
        ranks: how many ranks this machine runs; None: one process by itself, whatever `trainer` says. Where RANK is set
            (torchrun), and in each of several tasks of srun, this process already is a rank.
        description: shown by --help.
        supervised: `main` samples nothing: settings of rollouts are not checked, one that wants them is refused.
        argv: arguments; default those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser(default, description).parse_intermixed_args(arguments)
    if ranks is not None:
        srun.adopt(os.environ)
    is_rank = "RANK" in os.environ
    if is_rank:
        rank.enter()
    try:
        cfg = load_checked(options, supervised=supervised)
        if options.cfg or options.check:
            _show(cfg, options)
            sys.exit(EXIT_DONE)
        number = 1 if ranks is None else ranks(cfg)
        if ranks is not None:
            _check_world(cfg, number, is_rank)
    except RlkdError as error:
        if os.environ.get(rank.TRACEBACK):
            raise
        if is_rank and os.environ.get(rank.REPORTS):
            rank.report(error.exit_code, str(error), deliberate=True)  # said once, by whoever started the ranks
        else:
            sys.stderr.write("".join(f"error: {line}\n" for line in str(error).splitlines()))
        sys.exit(error.exit_code)
    if is_rank:
        rank.leave(rank.run(main, cfg))
    if number > 1:
        sys.exit(local.run_ranks(Path(sys.argv[0]).resolve(), arguments, number))
    rank.enter()
    rank.leave(rank.run(main, cfg))


def parser(default: str, description: str | None) -> argparse.ArgumentParser:
    """The arguments that all commands share."""
    found = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit codes: 0 done, 2 wrong config or input, 3 stopped by a signal and saved, 1 anything else",
    )
    found.add_argument("overrides", nargs="*", help="group=choice (objective=grpo) or key=value (objective.alpha=0.3)")
    found.add_argument("--config-name", default=default, help="config to start from (default: %(default)s)")
    found.add_argument("--config-dir", default=None, help="folder of the config (default: the conf/ of the package)")
    found.add_argument("--cfg", choices=["job"], help="print the resolved config and stop")
    found.add_argument("--check", action="store_true", help="check the config without starting anything")
    return found


def load_checked(options: argparse.Namespace, *, supervised: bool = False) -> Config:
    """The config that the command line asks for. Raises ConfigError with every problem.

    Args: supervised: as for `cli`.
    """
    # Late: --help should not wait for hydra.
    from rlkd_nemo.config.load import load
    from rlkd_nemo.config.rules import enforce

    cfg = load(options.config_name.removesuffix(".yaml"), options.overrides, options.config_dir)
    enforce(cfg, supervised=supervised)
    return cfg


def _show(cfg: Config, options: argparse.Namespace) -> None:
    from rlkd_nemo.config.load import to_yaml

    sys.stdout.write(to_yaml(cfg) if options.cfg else f"{options.config_name}: the config is valid\n")


def _check_world(cfg: Config, number: int, is_rank: bool) -> None:
    if not is_rank and cfg.trainer.num_nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={cfg.trainer.num_nodes}, but this command starts the ranks of one machine only; "
            f"start it on every node with srun or torchrun (they set RANK), or set trainer.num_nodes=1"
        )
    wanted = cfg.trainer.num_nodes * number
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if is_rank and world != wanted:
        raise ConfigError(
            f"WORLD_SIZE={world} ranks were started, but the config asks for {wanted} "
            f"(trainer.num_nodes={cfg.trainer.num_nodes}, {number} a node); change trainer.devices or the launch"
        )
