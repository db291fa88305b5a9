"""A Megatron model to a Hugging Face directory that transformers and vLLM load."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from rlkd_nemo.engine.ranks import Ranks, restore_rng, rng_state

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from rlkd_nemo.engine.hugging_face.config import CONFIG, read_config, to_config
from rlkd_nemo.engine.hugging_face.files import INDEX, SINGLE
from rlkd_nemo.engine.hugging_face.load import load_hugging_face
from rlkd_nemo.engine.hugging_face.tensors import Piece, pieces, whole_shapes
from rlkd_nemo.engine.model.build import build_model
from rlkd_nemo.engine.model.families import family_for
from rlkd_nemo.engine.model.precision import PRECISIONS
from rlkd_nemo.engine.scoring import sequence_log_probs
from rlkd_nemo.engine.state.storage import sync_to_disk, together
from rlkd_nemo.errors import CheckpointError, InputError

log = logging.getLogger(__name__)

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "tokenizer.model", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_MAX_GAP = 1e-4  # nats; the weights read back are the same to the bit, only a GPU's sums may differ


def save_hugging_face(
    model: Any,
    directory: str | Path,
    tokenizer_dir: str | Path | None = None,
    *,
    family: str | None = None,
    max_shard_bytes: int = 4 * 2**30,
) -> Path:
    """Write `directory`; until it has been read back and gives the model's own log-probs it is called `<directory>.tmp`.

    All ranks call together. One tensor at a time travels to the main rank, which holds one shard of at most
    `max_shard_bytes` (or one tensor, if that is larger). The check builds the model a second time, in the same layout.

    Args:
        model: an RLKDActor or a model of `build_model`; its own precision is written.
        tokenizer_dir: whose tokenizer files, and ids of special tokens, are copied.
        family: name of a file in engine/model/families; None: the first that fits.
    Raises: InputError when `directory` exists or cannot be written, CheckpointError when what was written does not read
        back, both on every rank and leaving nothing behind; ConfigError on a family that does not fit.
    """
    model = getattr(model, "bare_model", model)
    directory = Path(directory)
    unfinished = directory.with_name(directory.name + ".tmp")
    ranks, settings, vocab_size = model.ranks, model.settings, model.vocab_size
    dtype = str(model.hidden_model.config.params_dtype).removeprefix("torch.")
    config = to_config(settings, vocab_size, family_for(settings, family), dtype)
    what = f"{directory} was not written"
    try:
        together(lambda: _prepare(directory, unfinished, config, tokenizer_dir), what)
        _write_weights(model, unfinished, whole_shapes(settings, vocab_size), max_shard_bytes, what)
        _verify(model, unfinished)
        together(lambda: _publish(unfinished, directory), what)
    finally:
        if ranks.is_main:
            shutil.rmtree(unfinished, ignore_errors=True)  # published, it is no longer there
    log.info("wrote %s, read it back and found the same log-probs", directory)
    return directory


def _prepare(directory: Path, unfinished: Path, config: dict[str, Any], tokenizer_dir: str | Path | None) -> None:
    if dist.get_rank() != 0:
        return
    if directory.exists():
        raise InputError(f"{directory} exists already; name a directory that does not (convert.target)")
    directory.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    if tokenizer_dir is not None:
        source = Path(tokenizer_dir)
        for name in _TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, unfinished / name)
        if (source / CONFIG).is_file():
            known = read_config(source)
            config |= {key: known[key] for key in _IDS if known.get(key) is not None}
    (unfinished / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _write_weights(
    model: Any, directory: Path, shapes: dict[str, tuple[int, ...]], max_shard_bytes: int, what: str
) -> None:
    ranks: Ranks = model.ranks
    mine = {piece.name: piece for piece in pieces(model.hidden_model) if not piece.second}
    owners: list[list[str]] = [list(mine)]
    if ranks.pp_size > 1:
        owners = [[]] * ranks.pp_size
        dist.all_gather_object(owners, list(mine), group=ranks.pp_group)
    stage_of = {name: stage for stage, names in enumerate(owners) for name in names}
    shards = _shards(shapes, model.hidden_model.config.params_dtype.itemsize, max_shard_bytes)
    total = sum(tensor_bytes for _, tensor_bytes in shards)
    weight_map = {}
    for number, (names, _) in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        shard = {}
        for name in names:
            value = _gather(mine.get(name), name, stage_of[name], shapes[name], model)
            if ranks.is_main:
                shard[name] = value
        together(lambda: save_file(shard, directory / file, {"format": "pt"}) if shard else None, what)  # noqa: B023
    index = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n"
    # All ranks read the index next: none may go on before it is there.
    together(lambda: (directory / INDEX).write_text(index) if ranks.is_main and len(shards) > 1 else None, what)


def _shards(shapes: dict[str, tuple[int, ...]], item_bytes: int, limit: int) -> list[tuple[list[str], int]]:
    shards: list[tuple[list[str], int]] = []
    for name, shape in shapes.items():
        size = torch.Size(shape).numel() * item_bytes
        if not shards or shards[-1][1] + size > limit:
            shards.append(([], 0))
        names, total = shards[-1]
        shards[-1] = ([*names, name], total + size)
    return shards


@torch.no_grad()
def _gather(piece: Piece | None, name: str, stage: int, shape: tuple[int, ...], model: Any) -> torch.Tensor | None:
    """The whole tensor on the main rank's host. The first data-parallel ranks join their shards, then cross stages."""
    ranks: Ranks = model.ranks
    if ranks.dp_rank != 0 or ranks.cp_rank != 0:
        return None
    whole = None
    if piece is not None:
        local = piece.view.reshape(piece.shape).contiguous()
        whole = local
        if piece.dim is not None and ranks.tp_size > 1:
            parts = [torch.empty_like(local) for _ in range(ranks.tp_size)] if ranks.tp_rank == 0 else None
            dist.gather(local, parts, dst=dist.get_global_rank(ranks.tp_group, 0), group=ranks.tp_group)
            whole = torch.cat(parts, dim=piece.dim) if parts is not None else None
        if whole is not None:
            whole = whole[: shape[0]].contiguous()  # rows that pad the vocabulary stay
    if ranks.tp_rank != 0:
        return None
    if stage != 0:  # the main rank is on the first stage
        if whole is None:
            whole = torch.empty(shape, dtype=model.hidden_model.config.params_dtype, device=ranks.device)
        dist.broadcast(whole, dist.get_global_rank(ranks.pp_group, stage), group=ranks.pp_group)
    return whole.cpu().clone() if ranks.is_main and whole is not None else None


def _verify(model: Any, directory: Path) -> None:
    """Read the export into a second model and compare log-probs on a fixed prompt."""
    ranks, settings, vocab_size = model.ranks, model.settings, model.vocab_size
    dtype = model.hidden_model.config.params_dtype
    before = rng_state()
    copy = build_model(settings, vocab_size, ranks, next(name for name, of in PRECISIONS.items() if of == dtype))
    restore_rng(before)
    try:
        load_hugging_face(directory, copy)
    except InputError as err:
        raise CheckpointError(f"the export does not read back: {err}") from err
    length = min(settings.encoder_seq_length, 33)
    ids = [(7919 * place + 13) % vocab_size for place in range(length)]
    values = [
        sequence_log_probs(one, ranks, [ids[:1]], [ids[1:]], temperature=1.0, pad_id=0)[0][0] for one in (model, copy)
    ]
    gap = float((values[0] - values[1]).abs().max())
    if not gap <= _MAX_GAP:
        raise CheckpointError(f"the export in {directory} gives other log-probs, by {gap:.3g} nats; wanted {_MAX_GAP}")


def _publish(unfinished: Path, directory: Path) -> None:
    if dist.get_rank() == 0:
        for file in unfinished.iterdir():
            sync_to_disk(file)
        unfinished.rename(directory)
        with contextlib.suppress(OSError):
            sync_to_disk(directory.parent)
