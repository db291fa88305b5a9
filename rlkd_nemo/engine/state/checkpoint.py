"""Checkpoints: a folder is published whole or not at all, and read back under any layout.

All ranks call `save_checkpoint` and `load_checkpoint` together, on a file system they share. Under the layout that
wrote it a training state continues to the last digit; under another one weights and optimizer states are re-sharded and
the random number generators stay as they are (a warning says so). Rows that only pad the vocabulary, whose number
depends on the layout, are no part of the model: those that the checkpoint lacks keep what they were initialised with.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlkd_nemo.engine.ranks import restore_rng, rng_state

import torch.distributed as dist

from rlkd_nemo.engine.state import integrity
from rlkd_nemo.engine.state.background import Background
from rlkd_nemo.engine.state.distributed import STORED_AS
from rlkd_nemo.engine.state.layers import fill, model_state, scales_are_state
from rlkd_nemo.engine.state.meta import (
    FORMAT_VERSION,
    architecture_of,
    check_model,
    check_pieces,
    layout_of,
    model_from_checkpoint,
    pieces_hash,
    read_meta,
    versions,
)
from rlkd_nemo.engine.state.retention import META, TEMPORARY, best, checkpoint_path, clean, latest, prune, retire
from rlkd_nemo.engine.state.storage import ShardedObject, prepare_state, read_state, sync_to_disk, together, write_state
from rlkd_nemo.errors import CheckpointError, DamagedCheckpointError

__all__ = [
    "begin_save",
    "best",
    "latest",
    "load_checkpoint",
    "model_from_checkpoint",
    "prune",
    "read_meta",
    "save_checkpoint",
]

log = logging.getLogger(__name__)


def save_checkpoint(
    directory: str | Path,
    step: int,
    actor: Any,
    *,
    extra: Mapping[str, Any],
    tokenizer_pieces: Sequence[str],
    metric: float | None = None,
) -> Path:
    """Write `<directory>/step-<step>`; until it is complete and on disk it is called `step-<step>.tmp`.

    What an interrupted save left behind is removed first. A checkpoint of the same step is replaced, at the end.

    Args:
        actor: an RLKDActor, or a bare model of `build_model` (weights only).
        extra: the trainer's own state, JSON-able; floats come back to the last digit.
        tokenizer_pieces: the string of every id, to recognise the vocabulary.
        metric: what `best` and `prune` go by; None if nothing was measured.
    Raises: CheckpointError on every rank if any could not write; earlier checkpoints are untouched.
    """
    with _explained(Path(directory), step):
        finish = _begin(Path(directory), step, actor, extra, tokenizer_pieces, metric, copy=False)
        return finish(None)


def begin_save(
    background: Background,
    directory: str | Path,
    step: int,
    actor: Any,
    *,
    extra: Mapping[str, Any],
    tokenizer_pieces: Sequence[str],
    metric: float | None = None,
) -> None:
    """`save_checkpoint`, but only copying to host memory now; `background` writes and publishes while training goes on.

    What is published is the state at this call. The save before must have been collected (`background.wait`).
    Raises: CheckpointError as `save_checkpoint`, here or from `background.wait`.
    """
    directory = Path(directory)
    with _explained(directory, step):
        finish = _begin(directory, step, actor, extra, tokenizer_pieces, metric, copy=True)

    def write(group: dist.ProcessGroup | None) -> Path:
        with _explained(directory, step, group):
            return finish(group)

    background.start(write, f"save of step {step}")


def _begin(
    directory: Path,
    step: int,
    actor: Any,
    extra: Mapping[str, Any],
    pieces: Sequence[str],
    metric: float | None,
    *,
    copy: bool,
) -> Callable[[dist.ProcessGroup | None], Path]:
    """The part of a save that needs the model; returns the part that only needs the disk, given a group of all ranks."""
    final, unfinished, what = _places(directory, step)
    meta = _describe(actor, step, extra, pieces, metric)
    together(lambda: _prepare(unfinished), what)
    state = prepare_state(_state(actor, training=_trains(actor)), copy=copy)

    def finish(group: dist.ProcessGroup | None) -> Path:
        write_state(state, unfinished, what, group)
        meta["files"] = integrity.fingerprints(unfinished, what, group)
        together(lambda: _publish(unfinished, final, json.dumps(meta, indent=2)), what, group)
        return final

    return finish


def _places(directory: Path, step: int) -> tuple[Path, Path, str]:
    """Where it will be, where it is until then, and how a failure begins."""
    final = checkpoint_path(directory, step)
    return (
        final,
        final.with_name(final.name + TEMPORARY),
        f"checkpoint of step {step} was not written to {directory}, earlier ones are untouched",
    )


@contextmanager
def _explained(directory: Path, step: int, group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Removes what a failed save left and adds to its error what to do."""
    try:
        yield
    except CheckpointError as err:
        if _is_main():
            shutil.rmtree(_places(directory, step)[1], ignore_errors=True)
        free = _free_space(directory, group)
        raise CheckpointError(f"{err}. {free}; change exp_manager.exp_dir or make room") from err


def load_checkpoint(
    path: str | Path, actor: Any, *, weights_only: bool = False, tokenizer_pieces: Sequence[str] | None = None
) -> dict[str, Any]:
    """Fill `actor` from a checkpoint and return the `extra` it was saved with.

    The optimizer's settings and the schedule's shape stay those of the config that built the actor; a warning names
    each in which the checkpoint differs. A model that has no optimizer gets the weights only.

    Args:
        actor: an RLKDActor, or a bare model of `build_model`.
        weights_only: leave optimizer, schedule, `updates` and random numbers alone: a start model, a teacher.
        tokenizer_pieces: if given, the vocabulary's pieces are compared, not just their number.
    Raises: DamagedCheckpointError when its files are not what was written; CheckpointError when there is no such
        checkpoint, it holds another model or vocabulary, no training state or one of another precision, or it cannot
        be read.
    """
    path = Path(path)
    meta = read_meta(path)
    integrity.check(path)
    check_model(path, meta, actor.settings, actor.vocab_size)
    if tokenizer_pieces is not None:
        check_pieces(path, meta, tokenizer_pieces)
    training = _trains(actor) and not weights_only
    if training:
        _check_training(path, meta, actor)
    same_layout = meta["layout"] == _layout(actor)
    template = _state(
        actor, training=training and meta["optimizer_stepped"], rng=training and same_layout, loading=True
    )
    try:
        state = read_state(template, path, f"{path} cannot be read")
    except CheckpointError as err:
        if "files" in meta:
            raise  # they are what was written: this model cannot take them
        raise DamagedCheckpointError(str(err)) from err
    fill(actor.hidden_model, state["model"])
    if not training:
        if _trains(actor):
            actor.optimizer.reload_model_params()  # the fp32 master weights of a bf16 model
        return meta["extra"]
    _load_training(actor, state, meta)
    if same_layout:
        restore_rng(state["rng"])
    elif _is_main():
        log.warning("%s was saved under %s, now %s: random numbers start anew", path, meta["layout"], _layout(actor))
    return meta["extra"]


def _trains(actor: Any) -> bool:
    return getattr(actor, "optimizer", None) is not None


def _is_main() -> bool:
    return dist.get_rank() == 0


def _layout(actor: Any) -> dict[str, int]:
    return layout_of(actor.settings, dist.get_world_size())


def _precision(actor: Any) -> str:
    config = actor.hidden_model.config
    return str(config.params_dtype).removeprefix("torch.") + (" and delayed FP8" if scales_are_state(config) else "")


def _distributed(actor: Any) -> bool:
    return _trains(actor) and actor.settings.optim.use_distributed_optimizer


def _stepped(actor: Any) -> bool:
    """False while no update had a token of any weight: Adam then has no moments to store."""
    return _trains(actor) and bool(actor.optimizer.state)


def _describe(
    actor: Any, step: int, extra: Mapping[str, Any], pieces: Sequence[str], metric: float | None
) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "step": step,
        "metric": None if metric is None else float(metric),
        "content": "training" if _trains(actor) else "weights",
        "updates": getattr(actor, "updates", 0),
        "optimizer_stepped": _stepped(actor),
        "precision": _precision(actor),
        "distributed_optimizer": _distributed(actor),
        "architecture": architecture_of(actor.settings),
        "encoder_seq_length": actor.settings.encoder_seq_length,
        "max_position_embeddings": actor.settings.max_position_embeddings,
        "layout": _layout(actor),
        "vocabulary": {"size": actor.vocab_size, "sha256": pieces_hash(pieces)},
        "versions": versions(),
        "extra": dict(extra),
    }


def _state(actor: Any, *, training: bool, rng: bool = True, loading: bool = False) -> dict[str, Any]:
    """What is stored, as Megatron's sharded state; for loading, the template to fill."""
    state: dict[str, Any] = {"model": model_state(actor.hidden_model, training=training)}
    if training and (loading or _stepped(actor)):
        state["optimizer"] = actor.optimizer.sharded_state_dict(state["model"], is_loading=loading, metadata=STORED_AS)
    if training and not loading:
        state["scheduler"] = actor.scheduler.state_dict()
    if rng and _trains(actor):
        # An entry a rank: no two ranks draw the same numbers.
        state["rng"] = ShardedObject("rng", rng_state(), (dist.get_world_size(),), (dist.get_rank(),))
    return state


def _prepare(unfinished: Path) -> None:
    if _is_main():
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        for path in clean(unfinished.parent):
            log.warning("removed %s, left by an interrupted save", path)
        unfinished.mkdir()


def _publish(unfinished: Path, final: Path, meta: str) -> None:
    """All data is written: add the meta, bring everything to disk, and give it its name."""
    if not _is_main():
        return
    (unfinished / META).write_text(meta)
    for file in unfinished.iterdir():
        sync_to_disk(file)
    sync_to_disk(unfinished)
    # Two renames, and the removal of a large checkpoint after them: a kill in its minutes costs neither.
    replaced = retire(final) if final.exists() else None
    unfinished.rename(final)
    sync_to_disk(final.parent)
    if replaced is not None:
        shutil.rmtree(replaced)


def _free_space(directory: Path, group: dist.ProcessGroup | None) -> str:
    """The main rank's view, so that all ranks raise the same words."""
    view: list[str] = [""]
    if _is_main():
        while not directory.exists():
            directory = directory.parent
        view = [f"{shutil.disk_usage(directory).free / 2**20:.0f} MiB are free there"]
    dist.broadcast_object_list(view, group=group)
    return view[0]


def _check_training(path: Path, meta: Mapping[str, Any], actor: Any) -> None:
    if meta["content"] != "training":
        raise CheckpointError(
            f"{path} holds weights only, wanted a training state; start from it with model.restore_from_path instead"
        )
    if meta["precision"] != _precision(actor):
        raise CheckpointError(
            f"{path} was trained in {meta['precision']}, wanted {_precision(actor)}: a run resumes in its own "
            "trainer.precision; to start another from its weights use model.restore_from_path"
        )
    distributed = meta.get("distributed_optimizer", False)
    if distributed != _distributed(actor):
        raise CheckpointError(
            f"{path} holds the state of {'a distributed' if distributed else 'an undivided'} optimizer, found "
            f"model.optim.use_distributed_optimizer={str(_distributed(actor)).lower()}: the two are stored differently; "
            f"wanted {str(distributed).lower()}, or a start from its weights with model.restore_from_path"
        )


def _load_training(actor: Any, state: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Optimizer and schedule, but with the settings of the current config."""
    fixed = [{k: v for k, v in group.items() if k not in ("params", "step")} for group in actor.optimizer.param_groups]
    differing = set()
    if meta["optimizer_stepped"]:
        actor.optimizer.load_state_dict(state["optimizer"])
        for group, settings in zip(actor.optimizer.param_groups, fixed):
            differing |= {name for name, value in settings.items() if group[name] != value}
            group.update(settings)
    else:
        actor.optimizer.reload_model_params()
    saved = state["scheduler"]
    current = actor.scheduler.state_dict()
    differing |= {name for name, value in current.items() if saved[name] != value}
    # These two move with the schedule, and the count of updates is what is being loaded.
    differing -= {"lr", "weight_decay", "num_steps"}
    if differing and _is_main():
        log.warning("resuming with other settings than the checkpoint's: %s", ", ".join(sorted(differing)))
    actor.scheduler.num_steps = saved["num_steps"]
    actor.scheduler.step(0)
    actor.updates = meta["updates"]
