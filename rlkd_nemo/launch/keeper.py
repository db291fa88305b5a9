"""Keeps the GSRM's services of one node: vLLM servers of the layout, and on the first node the server that scores.

They end together: when one ends by itself, so do the others, and this process with an error; SIGTERM or SIGUSR1 lets
them finish what they took on, and this process ends with code 3 where its end is the job's, else with 0. Under `srun` one
of these runs on each node of the GSRM's component.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rlkd_nemo.config.schema import Config
from rlkd_nemo.errors import EXIT_DONE, EXIT_PREEMPTED, ConfigError, Preempted, ServiceError
from rlkd_nemo.launch import rank
from rlkd_nemo.launch.cli import load_checked, parser
from rlkd_nemo.launch.components import parts, replicas
from rlkd_nemo.launch.parent import die_with
from rlkd_nemo.lifecycle import signals

_POLL_S = 0.1
# A service is no rank, and reports to nobody.
_OURS = (rank.REPORTS, rank.LAUNCHER, "RANK", "SLURM_STEP_ID")
_SERVER = Path("examples/serve_gsrm.py")


def commands(cfg: Config, node: int, arguments: Sequence[str]) -> dict[str, tuple[list[str], dict[str, str]]]:
    """What runs on a node: name to command and its own variables.

    Args:
        node: within the GSRM's component, from 0.
        arguments: the config's name and overrides, for the server.
    """
    found: dict[str, tuple[list[str], dict[str, str]]] = {}
    models = dict(parts(cfg))
    # vLLM asks nobody for a token by itself: on one node only our server, which does, is there for others.
    host = "127.0.0.1" if cfg.layout.gsrm.nodes == 1 else "0.0.0.0"
    for replica in replicas(cfg):
        if replica.node != node:
            continue
        part, backend = models[replica.role], getattr(cfg.gsrm.llm, replica.role)
        command = [
            "vllm", "serve", replica.weights, "--host", host, "--port", str(replica.port),
            "--served-model-name", backend.model, "--tensor-parallel-size", str(part.tensor_parallel_size),
            "--max-model-len", str(part.max_model_len),
        ]  # fmt: skip
        own = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, replica.gpus))}
        if backend.api_key_env and os.environ.get(backend.api_key_env):
            own["VLLM_API_KEY"] = os.environ[backend.api_key_env]  # what its clients send, it asks for
        found[f"{replica.role} on port {replica.port}"] = (command, own)
    if node == 0:
        found["GSRM server"] = ([sys.executable, str(_SERVER), *arguments], {})
    return found


def keep(wanted: dict[str, tuple[list[str], dict[str, str]]], drain_s: float) -> None:
    """Run them until told to stop.

    Args: drain_s: how long they may take to end by themselves.
    Raises: Preempted when told to stop; ServiceError when one ended by itself or could not be started.
    """
    environment = {k: v for k, v in os.environ.items() if k not in _OURS}
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, (command, own) in wanted.items():
            try:
                running[name] = subprocess.Popen(command, env={**environment, **own}, preexec_fn=_die_with_parent())
            except OSError as err:
                raise ServiceError(
                    f"{name} cannot be started: {command[0]}: {err.strerror}; wanted an image (layout.gsrm.image) or an "
                    "environment (RLKD_PYTHON, PATH) that has it"
                ) from err
        while not signals.stop_requested():
            for name, process in running.items():
                if process.poll() is not None:
                    raise ServiceError(f"{name} ended with code {process.returncode}; its last words stand above")
            time.sleep(_POLL_S)
        raise Preempted("told to stop; the services finished what they had taken on")
    finally:
        _end(list(running.values()), drain_s)


def _end(processes: Sequence[subprocess.Popen[bytes]], drain_s: float) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    end = time.monotonic() + drain_s
    for process in processes:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _die_with_parent() -> Callable[[], None]:
    """For the child, before it becomes the service: however this process dies, the kernel ends the service."""
    keeper = os.getpid()

    def tie() -> None:
        # `srun` gives SIGUSR1 to services too, which would die of it; we tell them by SIGTERM.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        die_with(keeper, signal.SIGKILL)

    return tie


def main(argv: Sequence[str] | None = None) -> int:
    """Run the services of this node. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser("rlkd_demo", __doc__).parse_intermixed_args(arguments)
    try:
        cfg = load_checked(options)
    except ConfigError as err:
        sys.stderr.write("".join(f"error: {line}\n" for line in err.problems))
        return err.exit_code
    os.environ.setdefault("RANK", os.environ.get("SLURM_PROCID", "0"))  # names its log lines and its report
    rank.enter()
    wanted = commands(cfg, int(os.environ.get("SLURM_NODEID", "0")), arguments)
    code = rank.run(lambda cfg: keep(wanted, cfg.gsrm.server.drain_s), cfg)
    # Beside a trainer, which tells it to stop when all is done, that is a good end; a job of its own is to go on later.
    return EXIT_DONE if code == EXIT_PREEMPTED and rank.REPORTS not in os.environ else code


if __name__ == "__main__":
    sys.exit(main())
