"""Files that must be there, folders that must be writable with room for the checkpoints, ports that must be free."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from rlkd_nemo.config.objectives import needs_teacher
from rlkd_nemo.config.schema import Config, Model
from rlkd_nemo.doctor.finding import Finding, note
from rlkd_nemo.launch.components import replicas

_GIB = 2**30
# Bytes of a checkpoint a parameter: fp32 masters and two moments; bf16 weights beside them.
_BYTES = {"32": 12, "bf16": 14}


def inputs(cfg: Config, trains: bool = True) -> Iterator[Finding]:
    """Every file or folder that the config names and the run reads. What the run makes itself, in exp_dir, is left out.

    Args: trains: False: the job only scores, and reads no model.
    """
    named = {"gsrm.llm.prompts": cfg.gsrm.llm.prompts}
    if trains:
        named["model.restore_from_path"] = cfg.model.restore_from_path
        if needs_teacher(cfg.objective):
            named["teacher.restore_from_path"] = cfg.teacher.restore_from_path
        if cfg.model.tokenizer.library == "huggingface":
            named["model.tokenizer.type"] = cfg.model.tokenizer.type
    for key in ("path", "validation_path", "test_path", "chat_template"):
        named[f"task.{key}"] = getattr(cfg.task, key, None)
    made_here = Path(cfg.exp_manager.exp_dir).absolute()
    missing: dict[str, list[str]] = {}
    for key, value in named.items():
        if value and made_here not in Path(value).absolute().parents and not Path(value).exists():
            missing.setdefault(value, []).append(key)
    for value, keys in missing.items():
        yield Finding(
            f"{', '.join(keys)}={value} does not exist; wanted a path that is there, seen from the working folder {Path.cwd()}"
        )
    for role in ("decomposer", "judge"):
        part = getattr(cfg.layout.gsrm, role)
        # A name on the hub looks like a path too: it is taken for one where its folder is there.
        if part.replicas and part.weights and Path(part.weights).parent.is_dir() and not Path(part.weights).exists():
            yield Finding(
                f"layout.gsrm.{role}.weights={part.weights} does not exist; wanted a directory that vLLM can serve, or a "
                "name on the hub"
            )


def outputs(cfg: Config, vocabulary: int = 0, trains: bool = True) -> Iterator[Finding]:
    """Where the run writes, and whether its checkpoints fit there.

    Args:
        vocabulary: rows of the embedding; 0: not known, so that checkpoints are larger than what is asked for here.
        trains: False: the job writes no checkpoint.
    """
    written = {"exp_manager.exp_dir": cfg.exp_manager.exp_dir, "gsrm.reference_store": cfg.gsrm.reference_store}
    if cfg.gsrm.llm.verdicts:
        written["gsrm.llm.verdicts"] = str(Path(cfg.gsrm.llm.verdicts).parent)
    for key, value in written.items():
        if not value:
            continue
        there = _nearest(Path(value))
        if not there.is_dir():
            yield Finding(f"{key}={value} cannot be made: {there} is a file; wanted a folder")
        elif not os.access(there, os.W_OK | os.X_OK):
            yield Finding(
                f"{key}={value} cannot be written: {there} is closed to {_user()}; wanted a folder of your own"
            )
    if trains:
        yield from _room(cfg, vocabulary)


def _room(cfg: Config, vocabulary: int) -> Iterator[Finding]:
    there = _nearest(Path(cfg.exp_manager.exp_dir))
    if not there.is_dir():
        return
    kept = cfg.exp_manager.checkpoint_callback_params
    number = kept.save_last + kept.save_top_k + 1  # one more is written before one goes
    size = parameters(cfg.model, vocabulary) * _BYTES.get(cfg.trainer.precision, 14)
    free = shutil.disk_usage(there).free
    if free < number * size:
        yield Finding(
            f"exp_manager.exp_dir={cfg.exp_manager.exp_dir} has {free / _GIB:.1f} GiB free, but {number} checkpoints of "
            f"{size / _GIB:.1f} GiB may stand there at once; wanted {number * size / _GIB:.1f} GiB: name a larger disk, or "
            "lower exp_manager.checkpoint_callback_params.save_last or save_top_k"
        )


def parameters(model: Model, vocabulary: int = 0) -> int:
    """Parameters of the architecture; without the embeddings where the vocabulary is not known (0)."""
    head = model.kv_channels or model.hidden_size // max(1, model.num_attention_heads)
    attention = 2 * model.hidden_size * head * (model.num_attention_heads + model.num_query_groups)
    layer = attention + 3 * model.hidden_size * model.ffn_hidden_size + 2 * model.hidden_size
    tables = 1 if model.share_embeddings_and_output_weights else 2
    return model.num_layers * layer + tables * vocabulary * model.hidden_size + model.hidden_size


def ports(cfg: Config, here: Sequence[str]) -> Iterator[Finding]:
    """Ports that something else on this machine listens on.

    Args: here: the components whose first node this machine is, so that their ports can be tried.
    """
    wanted: dict[str, int] = {}
    if "trainer" in here:
        wanted["layout.trainer.port"] = cfg.layout.trainer.port
    if "gsrm" in here:
        wanted["gsrm.server.port"] = cfg.gsrm.server.port
        try:
            found = replicas(cfg)
        except ValueError:
            found = []  # named by the rules
        wanted |= {f"layout.gsrm.{one.role}.port ({one.port})": one.port for one in found if one.node == 0}
    for key, port in wanted.items():
        if not 0 < port < 65536:
            continue  # any free one, or named by the rules
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError as err:
                if err.errno in (errno.EADDRINUSE, errno.EACCES):
                    yield Finding(
                        f"{key}={port} cannot be had on {socket.gethostname()}: {err.strerror}; choose another"
                    )
                else:
                    yield note(f"{key}={port} could not be tried: {err}")


def _nearest(path: Path) -> Path:
    """The path itself, or the closest of its parents that exists."""
    path = path.absolute()
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def _user() -> str:
    return f"user {os.environ.get('USER') or os.getuid()}"
