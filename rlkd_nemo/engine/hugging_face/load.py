"""Weights of a Hugging Face directory into a Megatron model, each rank reading only what it holds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rlkd_nemo.config.schema import Model
from rlkd_nemo.engine.hugging_face.config import CONFIG, model_from_hugging_face
from rlkd_nemo.engine.hugging_face.files import TensorFiles
from rlkd_nemo.engine.hugging_face.tensors import DERIVED, EMBEDDING, OUTPUT, pieces, whole_shapes
from rlkd_nemo.engine.state.meta import architecture_of
from rlkd_nemo.errors import InputError, RlkdError
from rlkd_nemo.lifecycle.watchdog import mark
from rlkd_nemo.tokenizer import HuggingFaceTokenizer

log = logging.getLogger(__name__)


def load_hugging_face(
    directory: str | Path, target: Any, *, tokenizer_pieces: Sequence[str] | None = None
) -> TensorFiles:
    """Fill `target` from `directory`: every tensor is accounted for, every parameter written exactly once.

    All checks come before the first write. Rows of the vocabulary that the model has no ids for (the authors' padding)
    are left out and said so; rows that pad the model's vocabulary become 0. Host memory beside the model: one slice.

    Args:
        target: an RLKDActor, whose optimizer then starts from these weights, or a bare model of `build_model`.
        tokenizer_pieces: if given, they are compared with the directory's tokenizer.json, where there is one.
    Returns: the files, with what was read of them.
    Raises: InputError, on every rank alike, when the directory is unusable or holds another model.
    """
    directory = Path(directory)
    failure: RlkdError | None = None
    files = None
    try:
        files = _checked(directory, target.settings, target.vocab_size, tokenizer_pieces)
        _fill(files, target)
    except RlkdError as err:
        failure = err
    reports: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(reports, None if failure is None else str(failure))
    failed = [report for report in reports if report is not None]
    if failed or files is None:
        raise InputError(failed[0]) from failure
    if getattr(target, "optimizer", None) is not None:
        target.optimizer.reload_model_params()  # the fp32 master weights of a bf16 model
    return files


def _checked(directory: Path, model: Model, vocab_size: int, tokenizer_pieces: Sequence[str] | None) -> TensorFiles:
    wanted, got = architecture_of(model), architecture_of(model_from_hugging_face(directory, model))
    wrong = [f"{name} {got[name]}, wanted {value}" for name, value in wanted.items() if got[name] != value]
    if wrong:
        raise InputError(f"{directory / CONFIG} describes another model: {'; '.join(wrong)}. Change model.* to it")
    files = TensorFiles(directory)
    shapes = whole_shapes(model, vocab_size)
    missing = sorted(shapes.keys() - files.shapes.keys())
    left_over = sorted(name for name in files.shapes.keys() - shapes.keys() if not DERIVED.fullmatch(name))
    if missing or left_over:
        parts = [f"{what} {_some(names)}" for what, names in (("missing", missing), ("left over", left_over)) if names]
        raise InputError(f"{directory}: the weights are not those that {CONFIG} describes: {'; '.join(parts)}")
    rows = {files.shapes[name][0] for name in (EMBEDDING, OUTPUT) if name in shapes}
    if len(rows) != 1 or min(rows) < vocab_size:
        raise InputError(
            f"{directory}: its vocabulary has {' and '.join(map(str, sorted(rows)))} rows, wanted at least the "
            f"{vocab_size} ids of model.tokenizer, and the same in {EMBEDDING} and {OUTPUT}"
        )
    for name, shape in shapes.items():
        found = files.shapes[name]
        if found != ((rows.copy().pop(), *shape[1:]) if name in (EMBEDDING, OUTPUT) else shape):
            raise InputError(f"{directory}: tensor {name} is {list(found)}, wanted {list(shape)} by {CONFIG}")
    if max(rows) > vocab_size and dist.get_rank() == 0:
        log.warning("%s: %d rows of the vocabulary have no id in the tokenizer and are left out", directory,
                    max(rows) - vocab_size)  # fmt: skip
    if tokenizer_pieces is not None:
        _check_pieces(directory, tokenizer_pieces)
    return files


@torch.no_grad()
def _fill(files: TensorFiles, target: Any) -> None:
    rank, vocab_size = target.ranks.tp_rank, target.vocab_size
    covered = 0
    for piece in pieces(target.hidden_model):
        mark(f"reading {piece.name}")
        view = piece.view
        if piece.dim is None:
            value = files.read(piece.name)
        else:
            size = piece.shape[piece.dim]
            start, stop = rank * size, (rank + 1) * size
            if piece.name in (EMBEDDING, OUTPUT):
                start, stop = min(start, vocab_size), min(stop, vocab_size)
                view = piece.view[: stop - start]
                piece.view[stop - start :].zero_()
            if start == stop:  # this rank's share of the vocabulary is all padding
                covered += piece.view.numel()
                continue
            value = files.read(piece.name, piece.dim, start, stop)
        view.copy_(value.view(view.shape))
        covered += piece.view.numel()
    total = sum(parameter.numel() for parameter in target.hidden_model.parameters())
    assert covered == total, f"{covered} of {total} numbers were written"


def _check_pieces(directory: Path, wanted: Sequence[str]) -> None:
    if not (directory / "tokenizer.json").is_file():
        if dist.get_rank() == 0:
            log.warning("%s has no tokenizer.json: its vocabulary is taken to be model.tokenizer's", directory)
        return
    got = HuggingFaceTokenizer(directory).pieces()
    if got != list(wanted):
        first = next((i for i, (a, b) in enumerate(zip(got, wanted)) if a != b), min(len(got), len(wanted)))
        raise InputError(
            f"{directory} has another vocabulary than model.tokenizer: {len(got)} pieces, wanted {len(wanted)}, the first "
            f"difference at id {first}; use its tokenizer (model.tokenizer.library=huggingface)"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
