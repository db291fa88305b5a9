"""A Triton server that is no reward model: a model of another signature under the reward model's name.

Usage: other_server.py PORT.
"""

import sys

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


@batch
def infer(text):
    return {"embedding": np.zeros((len(text), 4), dtype=np.float32)}


if __name__ == "__main__":
    config = TritonConfig(allow_grpc=False, allow_metrics=False, http_address="127.0.0.1", http_port=int(sys.argv[1]))
    with Triton(config=config) as triton:
        triton.bind(
            "reward_model",
            infer,
            inputs=[Tensor(name="text", shape=(1,), dtype=bytes)],
            outputs=[Tensor(name="embedding", shape=(4,), dtype=np.float32)],
            config=ModelConfig(max_batch_size=8),
        )
        triton.serve()
