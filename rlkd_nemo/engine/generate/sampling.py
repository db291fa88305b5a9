"""Random numbers with names, and drawing tokens with them.

A row's numbers depend on what the row is (stream, problem, sample) and on nothing else, so its response is the same in
whatever batch, order or layout of ranks it is decoded.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

# Elements of the float64 distribution that exist at once: 16 rows of a vocabulary of 128 k.
_CHUNK_ELEMENTS = 2**21


def uniforms(name: tuple[Any, ...], number: int) -> np.ndarray:
    """The first `number` random numbers in [0, 1) called `name`, float64 [number].

    Philox, a counter-based generator, keyed by a hash of the name's parts as text; a longer sequence begins with the
    shorter one.
    """
    text = "".join(f"{len(part)}:{part}" for part in map(str, name))  # lengths: ("ab", "c") is not ("a", "bc")
    key = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).random(number)


def draw(logits: torch.Tensor, uniform: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a row by inverting the cumulative distribution, or the likeliest one at temperature 0.

    Args:
        logits: float32 [rows, vocabulary], columns that only pad the vocabulary left out; overwritten.
        uniform: float64 [rows] in [0, 1); not read at temperature 0.
        temperature: divides the logits.
    Returns: int64 [rows] tokens and float32 [rows] their log-probs, nats, at that temperature (at 1 when greedy).
    """
    if temperature == 0:
        token = logits.argmax(-1)
        log_probs = torch.log_softmax(logits, -1)
    else:
        log_probs = torch.log_softmax(logits if temperature == 1 else logits.div_(temperature), -1)
        rows = max(1, _CHUNK_ELEMENTS // logits.shape[1])
        if logits.shape[0] <= rows:
            token = _invert(log_probs, uniform)
        else:
            token = torch.cat([_invert(*part) for part in zip(log_probs.split(rows), uniform.split(rows))])
    return token, log_probs.gather(1, token[:, None]).squeeze(1)


def _invert(log_probs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    # In float32 the sum over a large vocabulary loses its rare tokens: the tail of 128 k terms is below its rounding.
    cdf = log_probs.double().exp_().cumsum(-1)
    # A number is at most 1 - 2^-53, so the product stays below the total even rounded, and the first column above it is
    # one with probability.
    target = uniform[:, None] * cdf[:, -1:]
    return torch.searchsorted(cdf, target, right=True).squeeze(1)
