"""Selected-token log-probs against the plain soft-max, on one rank; tensor parallelism is in tests/parity."""

import pytest
import torch

from rlkd_nemo.engine.token_log_probs import token_log_probs


def plain(hidden, weight, targets, vocab_size, temperature):
    log_p = torch.log_softmax((hidden @ weight.T)[:, :vocab_size] / temperature, -1)
    return log_p.gather(-1, targets[:, None]).squeeze(-1), -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_values_and_gradients_equal_the_plain_ones(chunk, temperature):
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
