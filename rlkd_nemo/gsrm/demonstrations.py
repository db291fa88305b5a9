"""GSRM rows as a stream of supervised examples: what `training.sft` asks of a task, from a file instead."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from rlkd_nemo.errors import InputError
from rlkd_nemo.gsrm import dataset, schema
from rlkd_nemo.gsrm.chat_template import ChatTemplate
from rlkd_nemo.gsrm.prompting import Prompts
from rlkd_nemo.types import Problem


class _Encoder(Protocol):
    def encode(self, text: str) -> list[int]: ...


class Demonstrations:
    """Prompts as an inference server would make them, each with the right reply; every pass in an order of its own.

    Args:
        rows: decompositions, verdicts, and all verdicts of a response.
        form: json for a model that is served under constrained decoding, tags for one that is not.
        max_tokens: of prompt and reply with its end; a longer row is refused, or left out if `drop_longer`.
        on_row: told how many rows have been looked at.
    Attributes: dropped: rows left out.   fingerprint: of the rows, prompts and form.
    Raises: InputError for rows that cannot be written in the form, that are too long, or none left.
    """

    def __init__(
        self,
        rows: Sequence[dataset.Row],
        prompts: Prompts,
        template: ChatTemplate,
        tokens: _Encoder,
        *,
        form: schema.Form,
        max_tokens: int,
        drop_longer: bool = False,
        on_row: Callable[[int], None] = lambda done: None,
    ) -> None:
        self._pairs: list[tuple[Problem, str]] = []
        self.dropped = 0
        longest, name = 0, ""
        for done, row in enumerate(rows, start=1):
            on_row(done)
            talk = dataset.conversation(row, prompts, form)
            prompt = template.prompt(talk.messages)
            length = len(tokens.encode(prompt)) + len(tokens.encode(talk.completion)) + 1
            if length > max_tokens:
                self.dropped += 1
                if length > longest:
                    longest, name = length, row.id
                continue
            self._pairs.append((Problem(row.id, prompt, talk.completion), talk.completion))
        if self.dropped and not drop_longer:
            raise InputError(
                f"{self.dropped} of {len(rows)} rows have more tokens than model.encoder_seq_length={max_tokens}, the longest "
                f"{longest} (id {name!r}); raise it, or leave them out with gsrm.training.drop_longer=true"
            )
        if not self._pairs:
            raise InputError(
                f"no row is left of {len(rows)}: all are longer than model.encoder_seq_length={max_tokens}"
            )
        digest = hashlib.sha256(json.dumps([(p.prompt, reply) for p, reply in self._pairs]).encode())
        self.fingerprint = f"gsrm-{digest.hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self._pairs)

    def demonstrations(
        self, split: str, seed: int, difficulty: str, n: int, *, strategies: Sequence[str], noise: float, start: int = 0
    ) -> list[tuple[Problem, str]]:
        """Examples start..start+n of an endless walk over the rows; only `seed` counts beside."""
        found = []
        orders: dict[int, list[int]] = {}
        for index in range(start, start + n):
            turn, place = divmod(index, len(self._pairs))
            if turn not in orders:
                orders[turn] = list(range(len(self._pairs)))
                random.Random(f"gsrm {seed} {turn}").shuffle(orders[turn])
            found.append(self._pairs[orders[turn][place]])
        return found


def read(path: str | Path, held_out: float, form: schema.Form) -> list[dataset.Row]:
    """Rows of `gsrm.training.data` to train on: those whose problem is not held out. Raises as `dataset.read` does."""
    rows, _ = dataset.split(dataset.read(path, "gsrm.training.data", form), held_out)
    if not rows:
        raise InputError(f"gsrm.training.held_out={held_out} leaves no row of {path} to train on; lower it")
    return rows
