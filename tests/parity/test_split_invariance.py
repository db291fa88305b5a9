"""Loss and gradients do not depend on how ranks and micro-batches split an update (fp32, 1e-5 relative)."""

import re
from pathlib import Path

import pytest

from tests.ranks import launch

SCRIPT = Path(__file__).with_name("split_invariance_ranks.py")


def worst(output):
    found = re.findall(r"WORST loss (\S+) gradient (\S+) metric (\S+)", output)
    assert found, output
    return [float(number) for numbers in found for number in numbers]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("parity") / "reference.pt"
    output = launch(SCRIPT, 1, 1, 1, 1, path)
    assert max(worst(output)) <= 1e-5  # micro-batches of 4, 2 and 1
    return path, output


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("tp", "pp", "cp", "ranks"),
    [(2, 1, 1, 2), (1, 2, 1, 2), (1, 1, 1, 2), (2, 2, 1, 4), (1, 1, 2, 2), (2, 1, 2, 4), (1, 2, 2, 4)],
)
def test_a_split_changes_neither_loss_nor_gradient(reference, tp, pp, cp, ranks):
    # Each layout with its variants (sequence parallelism, recomputation), padded and packed, by rows and by tokens.
    # GRPO with reference KL, KDRL, TRRD with dual clip and TIS, OPD; ragged rows, failed rows and a failed group.
    assert max(worst(launch(SCRIPT, ranks, tp, pp, cp, reference[0]))) <= 1e-5


@pytest.mark.ranks
def test_recomputation_keeps_less_for_backward(reference):
    kept = {name: int(size) for size, name in re.findall(r"KEPT (\d+) (.+)", reference[1])}
    tokens, layers, hidden, heads, fp32 = 40, 4, 32, 4, 4
    # The input of every layer; the final norm keeps its own input and a number a token, all layers the rotary angles.
    least = layers * tokens * hidden * fp32
    assert least < kept["recompute full"] < 2 * least < kept["plain"] / 5
    # The fused kernel's log-sum-exps; Megatron keeps a number a layer in their place.
    assert kept["plain"] - kept["recompute selective"] == layers * (tokens * heads * fp32 - 4)
