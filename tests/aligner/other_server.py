"""A Triton server whose models are no reward models, each in its own way; the last one is, and never in time.

Usage: other_server.py PORT.
"""

import sys
import time

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

TOKENS = [
    Tensor(name="tokens", shape=(-1,), dtype=np.int64),
    Tensor(name="sequence_lengths", shape=(-1,), dtype=np.int64),
]


@batch
def embed(text):
    return {"embedding": np.zeros((len(text), 4), dtype=np.float32)}


@batch
def fail(tokens, sequence_lengths):
    raise ArithmeticError("this model cannot score")


@batch
def rows_of_two(tokens, sequence_lengths):
    return {"rewards": np.zeros((len(tokens), 2), dtype=np.float32)}


@batch
def doubles(tokens, sequence_lengths):
    return {"rewards": np.zeros((len(tokens), 1))}


@batch
def sleep(tokens, sequence_lengths):
    time.sleep(600)


@batch
def pairs_only(tokens, sequence_lengths, critique):
    return {"rewards": np.zeros((len(tokens), 1), dtype=np.float32)}


def rewards(dtype=np.float32):
    return [Tensor(name="rewards", shape=(-1,), dtype=dtype)]


TEXT = [Tensor(name="text", shape=(1,), dtype=bytes)]
EMBEDDING = [Tensor(name="embedding", shape=(4,), dtype=np.float32)]
MODELS = {
    "reward_model": (embed, TEXT, EMBEDDING),
    "fails": (fail, TOKENS, rewards()),
    "two_columns": (rows_of_two, TOKENS, rewards()),
    "doubles": (doubles, TOKENS, rewards(np.float64)),
    "sleeps": (sleep, TOKENS, rewards()),
    # Takes what we send, and wants more.
    "wants_more": (pairs_only, [*TOKENS, Tensor(name="critique", shape=(1,), dtype=bytes)], rewards()),
}  # fmt: skip


if __name__ == "__main__":
    config = TritonConfig(allow_grpc=False, allow_metrics=False, http_address="127.0.0.1", http_port=int(sys.argv[1]))
    with Triton(config=config) as triton:
        for name, (function, inputs, outputs) in MODELS.items():
            triton.bind(name, function, inputs=inputs, outputs=outputs, config=ModelConfig(max_batch_size=8))
        triton.serve()
