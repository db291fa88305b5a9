"""Rewards behind PyTriton, in the protocol that NeMo-Aligner's unmodified `RemoteGPTRMClient` speaks.

`tokens` int64 [B, S] and `sequence_lengths` int64 [B, 1] in, or `sentences` utf-8 [B, 1]; `rewards` float32 [B, 1] out.
Two inputs more are understood and never asked for: `prompt_lengths` int64 [B, 1] and `sample_ids` utf-8 [B, 1], a name
of each row for the log. A row without a reward, by a failure of the system, is NaN.

No Megatron, no process group: one process, beside services for decomposer and judge.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rlkd_nemo.aligner.compat import SERVING, check

check(SERVING)

import numpy as np
from pytriton.decorators import batch, group_by_keys
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from rlkd_nemo.aligner.desk import RewardDesk, Row
from rlkd_nemo.config.aligner import Inference

log = logging.getLogger(__name__)


class GSRMRewardServer:
    """Serves a desk's rewards as model `model_name` over HTTP.

    Args:
        address: where it listens; NeMo-Aligner's servers are open to the network, so is this one by default.
        max_batch_size: rows of one request, or of several joined.
        max_queue_delay_microseconds: how long a request waits for others of its width to be scored with it.
    """

    def __init__(
        self,
        desk: RewardDesk,
        *,
        model_name: str = Inference.model_name,
        port: int = Inference.port,
        address: str = "0.0.0.0",
        max_batch_size: int = 9999999,
        max_queue_delay_microseconds: int = Inference.max_queue_delay_microseconds,
    ) -> None:
        self.desk, self.model_name, self.port, self.address = desk, model_name, port, address
        batcher = DynamicBatcher(max_queue_delay_microseconds=max_queue_delay_microseconds)
        self.model_config = ModelConfig(batching=True, max_batch_size=max_batch_size, batcher=batcher)
        self.inputs = [
            Tensor(name="sentences", shape=(-1,), dtype=bytes, optional=True),
            Tensor(name="tokens", shape=(-1,), dtype=np.int64, optional=True),
            Tensor(name="sequence_lengths", shape=(-1,), dtype=np.int64, optional=True),
            Tensor(name="prompt_lengths", shape=(-1,), dtype=np.int64, optional=True),
            Tensor(name="sample_ids", shape=(-1,), dtype=bytes, optional=True),
        ]
        self.outputs = [Tensor(name="rewards", shape=(1,), dtype=np.float32)]

    @group_by_keys
    @batch
    def infer(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """PyTriton's call for one or several requests of one width."""
        return {"rewards": self.rewards(inputs)}

    def rewards(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """float32 [B, 1] for the tensors of the protocol. Raises: ValueError, which the client sees, for others."""
        return np.array(self.desk.rewards(_rows(inputs)), dtype=np.float32)[:, None]

    @contextmanager
    def running(self) -> Iterator[Triton]:
        """The server while the block runs."""
        config = TritonConfig(
            allow_http=True, allow_grpc=False, allow_metrics=False, http_address=self.address, http_port=self.port
        )
        with Triton(config=config) as triton:
            triton.bind(
                model_name=self.model_name,
                infer_func=self.infer,
                inputs=self.inputs,
                outputs=self.outputs,
                config=self.model_config,
            )
            triton.run()
            log.info("rewards at port %d as model %s", self.port, self.model_name)
            yield triton

    def run_server(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        with self.running() as triton:
            triton.serve()


def _rows(inputs: dict[str, np.ndarray]) -> list[Row]:
    labels = [_text(row) for row in inputs["sample_ids"]] if "sample_ids" in inputs else None
    prompts = [int(row.flat[0]) for row in inputs["prompt_lengths"]] if "prompt_lengths" in inputs else None

    def row(place: int, **what: Any) -> Row:
        return Row(label=labels[place] if labels else "", prompt_length=prompts[place] if prompts else None, **what)

    if "sentences" in inputs:
        return [row(place, text=_text(sentence)) for place, sentence in enumerate(inputs["sentences"])]
    if "tokens" not in inputs or "sequence_lengths" not in inputs:
        raise ValueError(f"inputs {sorted(inputs)}; wanted sentences, or tokens and sequence_lengths")
    tokens, lengths = inputs["tokens"], inputs["sequence_lengths"].reshape(len(inputs["tokens"]))
    if lengths.max(initial=0) > tokens.shape[1] or lengths.min(initial=0) < 0:
        raise ValueError(f"sequence_lengths up to {lengths.max()} for tokens {tokens.shape}; wanted 0 to the width")
    return [row(place, tokens=ids[:length].tolist()) for place, (ids, length) in enumerate(zip(tokens, lengths))]


def _text(cell: np.ndarray) -> str:
    value = cell.flat[0]
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
