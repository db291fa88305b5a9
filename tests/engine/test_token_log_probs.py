"""Selected-token log-probs against the plain soft-max, on one rank; tensor parallelism is in tests/parity."""

import pytest
import torch

from rlkd_nemo.engine import token_log_probs as module
from rlkd_nemo.engine.token_log_probs import token_log_probs


def plain(hidden, weight, targets, vocab_size, temperature):
    log_p = torch.log_softmax((hidden @ weight.T)[:, :vocab_size] / temperature, -1)
    return log_p.gather(-1, targets[:, None]).squeeze(-1), -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("tile", [1, 8, 1 << 24])  # numbers in a tile: one column at a time, a few, all
@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_values_and_gradients_equal_the_plain_ones(chunk, temperature, tile, monkeypatch):
    monkeypatch.setattr(module, "TILE", tile)
    monkeypatch.setattr(module, "_CACHED", 12)  # passes go row by row, or three rows at a time
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, generator=draw, requires_grad=True)
    weight = torch.randn(12, 5, generator=draw, requires_grad=True)  # ids 10 and 11 only pad the vocabulary
    targets = torch.randint(0, 10, (7,), generator=draw)
    pull = torch.randn(7, generator=draw)
    pull[2] = 0.0  # a row without gradient is skipped in backward

    want, want_entropy = plain(hidden, weight, targets, 10, temperature)
    want_grads = torch.autograd.grad((want * pull).sum(), (hidden, weight))
    got, entropy = token_log_probs(hidden, weight, targets, vocab_size=10, temperature=temperature, chunk=chunk)
    grads = torch.autograd.grad((got * pull).sum(), (hidden, weight))

    torch.testing.assert_close(got, want)
    torch.testing.assert_close(entropy, want_entropy)
    for a, b in zip(grads, want_grads):
        torch.testing.assert_close(a, b)
    assert not entropy.requires_grad


def test_two_ids_by_hand():
    # logits (ln 3, 0): p = 3/4 and 1/4; entropy = -(3/4 ln 3/4 + 1/4 ln 1/4) = 0.562335
    weight = torch.tensor([[torch.log(torch.tensor(3.0))], [0.0], [50.0]])  # the third row is padding
    got, entropy = token_log_probs(torch.ones(1, 1), weight, torch.tensor([0]), vocab_size=2)
    assert got.item() == pytest.approx(-0.287682, abs=1e-6)
    assert entropy.item() == pytest.approx(0.562335, abs=1e-6)


def test_no_tokens():
    got, entropy = token_log_probs(torch.zeros(0, 3), torch.zeros(4, 3), torch.zeros(0, dtype=torch.long), vocab_size=4)
    assert got.shape == entropy.shape == (0,)


def test_far_apart_logits_do_not_overflow(monkeypatch):
    # Each tile of one column raises the maximum by 200: without rescaling e^200 would overflow fp32.
    monkeypatch.setattr(module, "TILE", 1)
    weight = torch.tensor([[0.0], [200.0], [400.0], [399.0]])
    got, entropy = token_log_probs(torch.ones(1, 1), weight, torch.tensor([3]), vocab_size=4)
    # p = 1 / (1 + e^-1) and its complement: log p(3) = -1 - ln(1 + e^-1) = -1.313262; entropy 0.582203
    assert got.item() == pytest.approx(-1.313262, abs=1e-5)
    assert entropy.item() == pytest.approx(0.582203, abs=1e-5)


def test_half_precision_weights_give_fp32_log_probs_and_gradients_of_their_own_type():
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn(6, 16, generator=draw).bfloat16().requires_grad_()
    weight = torch.randn(20, 16, generator=draw).bfloat16().requires_grad_()
    targets = torch.randint(0, 20, (6,), generator=draw)
    got, _ = token_log_probs(hidden, weight, targets, vocab_size=20)
    assert got.dtype == torch.float32
    want, _ = plain(hidden.float(), weight.float(), targets, 20, 1.0)
    torch.testing.assert_close(got, want, rtol=0.02, atol=0.02)  # logits are bf16 products
    got.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16


def test_backward_multiplies_only_rows_with_gradient_and_never_holds_all_logits(monkeypatch):
    seen = []
    plain_logits = module._Tiles.logits

    def counted(self, states, columns):
        logits = plain_logits(self, states, columns)
        seen.append(tuple(logits.shape))
        return logits

    monkeypatch.setattr(module._Tiles, "logits", counted)
    monkeypatch.setattr(module, "TILE", 32)
    hidden = torch.randn(10, 4, requires_grad=True)
    got, _ = token_log_probs(hidden, torch.randn(16, 4), torch.zeros(10, dtype=torch.long), vocab_size=16, chunk=4)
    assert max(rows * columns for rows, columns in seen) <= 32  # of 160
    seen.clear()
    pull = torch.zeros(10)
    pull[3] = pull[7] = 1.0
    got.backward(pull)
    assert sum(rows * columns for rows, columns in seen) == 2 * 16
    assert (hidden.grad[[0, 1, 2, 4, 5, 6, 8, 9]] == 0).all()
    assert (hidden.grad[[3, 7]] != 0).all()


@pytest.mark.parametrize("kept", [1, 3, 100])  # tiles that wait for backward; the last block has 4 or 3
@pytest.mark.parametrize("dead", [(), (1,), (6,), (1, 3, 6), (4, 5, 6), tuple(range(7))])
def test_tiles_that_waited_spare_their_product_and_change_no_gradient(kept, dead, monkeypatch):
    made = []
    plain_logits = module._Tiles.logits

    def counted(self, rows, columns):
        made.append((rows.stop - rows.start) * (columns.stop - columns.start))
        return plain_logits(self, rows, columns)

    monkeypatch.setattr(module._Tiles, "logits", counted)
    monkeypatch.setattr(module, "TILE", 12)  # three columns of four tokens
    monkeypatch.setattr(module, "KEPT", kept)
    draw = torch.Generator().manual_seed(3)
    hidden = torch.randn(7, 5, generator=draw, requires_grad=True)
    weight = torch.randn(12, 5, generator=draw, requires_grad=True)
    targets = torch.randint(0, 10, (7,), generator=draw)
    pull = torch.randn(7, generator=draw)
    pull[list(dead)] = 0.0
    want, _ = plain(hidden, weight, targets, 10, 0.7)
    want_grads = torch.autograd.grad((want * pull).sum(), (hidden, weight))
    got, _ = token_log_probs(hidden, weight, targets, vocab_size=10, temperature=0.7, chunk=4)
    made.clear()
    first = torch.autograd.grad((got * pull).sum(), (hidden, weight), retain_graph=True)
    # Blocks of tokens 0-3 and 4-6; the last tiles of the second wait, three columns each.
    late = sum(row >= 4 for row in range(7) if row not in dead)
    assert sum(made) == (7 - len(dead)) * 12 - late * min(3 * kept, 12)
    again = torch.autograd.grad((got * pull).sum(), (hidden, weight))  # they are used up: all are made again
    for a, b, c in zip(first, want_grads, again):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(c, b)


def test_without_gradients_no_tile_waits(monkeypatch):
    buffers = []
    plain_init = module._Tiles.__init__

    def counted(self, *args, **how):
        plain_init(self, *args, **how)
        buffers.append(len(self.buffers))

    monkeypatch.setattr(module._Tiles, "__init__", counted)
    hidden, weight, targets = torch.randn(4, 3, requires_grad=True), torch.randn(8, 3), torch.zeros(4, dtype=torch.long)
    with torch.no_grad():
        token_log_probs(hidden, weight, targets, vocab_size=8)
    token_log_probs(hidden, weight, targets, vocab_size=8)
    assert buffers == [1, module.KEPT]
