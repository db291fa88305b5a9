"""Sharded safetensors read by slices: a file's header when it is opened, of its data only what is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rlkd_nemo.errors import InputError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = ("F32", "BF16", "F16")


class TensorFiles:
    """The tensors of a Hugging Face directory.

    Attributes:
        shapes: of every tensor, by name.
        largest_read: bytes of the largest slice that was read, in the file's own type.
    Raises: InputError when a file is missing, cut short or no safetensors, files and index disagree, or a tensor has
        another type than float32, bfloat16 or float16.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.largest_read = 0
        self._slices: dict[str, Any] = {}
        index = self._index()
        for file in sorted(set(index.values())) if index is not None else [SINGLE]:
            self._open(file, None if index is None else {name for name, of in index.items() if of == file})

    def read(self, name: str, dim: int | None = None, start: int = 0, stop: int = 0) -> torch.Tensor:
        """The tensor, or its rows (dim 0) or columns (dim 1) from `start` to `stop`; nothing else is read."""
        view = self._slices[name]
        try:
            value = view[:] if dim is None else view[start:stop] if dim == 0 else view[:, start:stop]
        except (SafetensorError, OSError) as err:
            raise InputError(f"{self.directory}: tensor {name} cannot be read: {err}") from err
        self.largest_read = max(self.largest_read, value.nbytes)
        return value

    def _index(self) -> dict[str, str] | None:
        file = self.directory / INDEX
        if file.is_file():
            try:
                mapping = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
                return {str(name): str(of) for name, of in mapping.items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
                raise InputError(f"{file} cannot be read ({type(err).__name__}: {err}); wanted a weight_map") from err
        if not (self.directory / SINGLE).is_file():
            raise InputError(
                f"{self.directory} has neither {INDEX} nor {SINGLE}; wanted weights in safetensors, as save_pretrained "
                "of transformers writes them"
            )
        return None

    def _open(self, file: str, listed: set[str] | None) -> None:
        path = self.directory / file
        if not path.is_file():
            raise InputError(f"{path} is missing, though {INDEX} names it; fetch the shard again")
        try:
            handle = safe_open(path, framework="pt")
            names = set(handle.keys())
        except (SafetensorError, OSError) as err:
            raise InputError(f"{path} is damaged or cut short ({err}); fetch it again") from err
        if listed is not None and names != listed:
            odd = sorted(names ^ listed)
            raise InputError(f"{path} and {INDEX} disagree about {', '.join(odd[:6])}; wanted files of one model")
        for name in sorted(names):
            view = handle.get_slice(name)
            if view.get_dtype() not in DTYPES:
                raise InputError(
                    f"{path}: tensor {name} is {view.get_dtype()}; wanted {', '.join(DTYPES)} (no quantised weights)"
                )
            self._slices[name] = view
            self.shapes[name] = tuple(view.get_shape())
