"""The cached decoder against a plain forward without a cache, in half-split form, one row at a time."""

import numpy as np
import pytest
import torch

from rlkd_nemo.engine.generate import batch, decode
from rlkd_nemo.engine.generate.batch import decode_batch
from rlkd_nemo.engine.generate.decode import Decoder
from rlkd_nemo.engine.generate.sampling import uniforms
from rlkd_nemo.engine.generate.weights import DecoderWeights, LayerWeights, interleaved, interleaved_qkv

HEADS, GROUPS, DIM, HIDDEN, FFN, VOCAB, EOS = 4, 2, 6, 12, 10, 11, 3


def model(qk_norm):
    """Half-split weights as a model has them, and the decoder's own."""
    draw = torch.Generator().manual_seed(1)

    def matrix(*shape):
        return torch.randn(*shape, generator=draw) * 0.4

    plain = []
    for _ in range(3):
        layer = {
            "input_norm": 1 + matrix(HIDDEN), "qkv": matrix((HEADS + 2 * GROUPS) * DIM, HIDDEN),
            "proj": matrix(HIDDEN, HEADS * DIM), "pre_mlp_norm": 1 + matrix(HIDDEN), "fc1": matrix(2 * FFN, HIDDEN),
            "fc2": matrix(HIDDEN, FFN), "q_norm": 1 + matrix(DIM), "k_norm": 1 + matrix(DIM),
        }  # fmt: skip
        plain.append(layer if qk_norm else layer | {"q_norm": None, "k_norm": None})
    ends = {"embedding": matrix(VOCAB, HIDDEN), "final_norm": 1 + matrix(HIDDEN), "output": matrix(VOCAB, HIDDEN)}
    order, rows = interleaved(DIM), interleaved_qkv(GROUPS, HEADS // GROUPS, DIM)
    layers = [
        LayerWeights(
            layer["input_norm"], layer["qkv"][rows].T.contiguous(), layer["proj"].T.contiguous(), layer["pre_mlp_norm"],
            layer["fc1"].T.contiguous(), layer["fc2"].T.contiguous(),
            layer["q_norm"][order] if qk_norm else None, layer["k_norm"][order] if qk_norm else None,
        )
        for layer in plain
    ]  # fmt: skip
    weights = DecoderWeights(
        ends["embedding"],
        layers,
        ends["final_norm"],
        ends["output"].T.contiguous(),
        HEADS,
        GROUPS,
        DIM,
        1e-5,
        1.0 / 100.0 ** (torch.arange(0, DIM, 2) / DIM),
        VOCAB,
    )
    return plain, ends, Decoder(weights, 64)


def norm(x, weight):
    return x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * weight


def rotate(x):
    """[tokens, d], pairs (i, i + d/2)."""
    angle = torch.arange(x.shape[0])[:, None] / 100.0 ** (torch.arange(0, DIM, 2) / DIM)
    first, second = x.chunk(2, -1)
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1)


def forward(plain, ends, ids):
    """Logits after every token, [tokens, vocabulary]."""
    x = ends["embedding"][torch.tensor(ids)]
    future = torch.ones(len(ids), len(ids)).triu(1).bool()
    for layer in plain:
        fused = (norm(x, layer["input_norm"]) @ layer["qkv"].T).view(-1, GROUPS, HEADS // GROUPS + 2, DIM)
        heads = []
        for group in range(GROUPS):
            *queries, key, value = fused[:, group].unbind(1)
            for query in queries:
                if layer["q_norm"] is not None:
                    query = norm(query, layer["q_norm"])
                k = key if layer["k_norm"] is None else norm(key, layer["k_norm"])
                scores = rotate(query) @ rotate(k).T / DIM**0.5
                heads.append(scores.masked_fill(future, -torch.inf).softmax(-1) @ value)
        x = x + torch.cat(heads, -1) @ layer["proj"].T
        gate, up = (norm(x, layer["pre_mlp_norm"]) @ layer["fc1"].T).chunk(2, -1)
        x = x + torch.nn.functional.silu(gate) * up @ layer["fc2"].T
    return norm(x, ends["final_norm"]) @ ends["output"].T


PROMPTS = [[5, 1, 2, 9, 4, 4, 7], [8, 0, 6], [2], [7]]  # longest first
GROUPS_OF = [2, 3, 1, 2]
ROWS = [prompt for prompt, rows in zip(PROMPTS, GROUPS_OF) for _ in range(rows)]


def numbers(rows):
    return np.stack([uniforms(("row", row), 20) for row in rows])


def sample(decoder, temperature=1.0, limits=(20,) * 8):
    return decode_batch(decoder, PROMPTS, GROUPS_OF, numbers(range(8)), limits, temperature=temperature, eos_id=EOS)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_ragged_shared_prompts_decode_as_a_plain_forward_does(qk_norm, temperature):
    plain, ends, decoder = model(qk_norm)
    ids, log_probs = sample(decoder, temperature)
    ended = [row[-1] == EOS for row in ids]
    assert temperature == 0 or (any(ended) and any(len(row) == 20 for row in ids))  # rows did leave, rows did stay
    for number, (prompt, response, values) in enumerate(zip(ROWS, ids, log_probs)):
        logits = forward(plain, ends, prompt + response.tolist())[len(prompt) - 1 : -1]
        want = torch.log_softmax(logits / (temperature or 1.0), -1)
        if temperature == 0:
            assert response.tolist() == logits.argmax(-1).tolist(), number
        picked = want[torch.arange(len(response)), torch.from_numpy(response)]
        assert torch.allclose(torch.from_numpy(values), picked, atol=1e-4), number


def test_a_row_s_sample_is_the_same_alone_and_in_the_batch():
    _, _, decoder = model(False)
    together, _ = sample(decoder)
    for row, prompt in enumerate(ROWS):
        alone, _ = decode_batch(decoder, [prompt], [1], numbers([row]), [20], temperature=1.0, eos_id=EOS)
        assert alone[0].tolist() == together[row].tolist(), row


@pytest.mark.parametrize("change", ["rarely", "never", "one prompt at a time"])
def test_when_rows_leave_and_how_prompts_are_read_changes_no_token(monkeypatch, change):
    _, _, decoder = model(False)
    want, values = sample(decoder)
    if change == "rarely":
        monkeypatch.setitem(batch._LOOK_EVERY, "cpu", 3)
    elif change == "never":
        monkeypatch.setattr(batch, "_LEAVE_FRACTION", 2.0)
    else:
        monkeypatch.setattr(decode, "_PREFILL_TOKENS", 1)
    ids, log_probs = sample(decoder)
    assert [row.tolist() for row in ids] == [row.tolist() for row in want]
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(log_probs, values))


def test_each_row_ends_at_its_own_limit_or_before():
    _, _, decoder = model(False)
    free, _ = sample(decoder)
    limits = [1, 20, 3, 2, 20, 5, 4, 20]
    cut, _ = sample(decoder, limits=limits)
    assert [row.tolist() for row in cut] == [row[:limit].tolist() for row, limit in zip(free, limits)]
    for row in free:
        assert EOS not in row[:-1].tolist()  # end-of-text is the last token, and kept


def test_bfloat16_weights_decode_in_bfloat16_with_float32_log_probs():
    plain, ends, decoder = model(False)
    weights = decoder.weights
    for name in ("embedding", "final_norm", "output"):
        setattr(weights, name, getattr(weights, name).bfloat16())
    for layer in weights.layers:
        for name in ("input_norm", "qkv", "proj", "pre_mlp_norm", "fc1", "fc2"):
            setattr(layer, name, getattr(layer, name).bfloat16())
    ids, log_probs = sample(decoder)
    assert log_probs[0].dtype == np.float32
    gaps = []
    for prompt, response, values in zip(ROWS, ids, log_probs):
        logits = forward(plain, ends, prompt + response.tolist())[len(prompt) - 1 : -1]
        picked = torch.log_softmax(logits, -1)[torch.arange(len(response)), torch.from_numpy(response)]
        gaps.append((torch.from_numpy(values) - picked).abs().mean().item())
    assert max(gaps) < 0.1  # eight bits of mantissa through three layers
