"""Loss and gradients do not depend on how ranks and micro-batches split an update (fp32, 1e-5 relative)."""

import re
from pathlib import Path

import pytest

from tests.ranks import launch

SCRIPT = Path(__file__).with_name("split_invariance_ranks.py")


def worst(output):
    found = re.search(r"WORST loss (\S+) gradient (\S+) metric (\S+)", output)
    assert found, output
    return [float(number) for number in found.groups()]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("parity") / "reference.pt"
    assert max(worst(launch(SCRIPT, 1, 1, 1, 1, path))) <= 1e-5  # micro-batches of 4, 2 and 1
    return path


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("tp", "pp", "cp", "ranks"),
    [(2, 1, 1, 2), (1, 2, 1, 2), (1, 1, 1, 2), (2, 2, 1, 4), (1, 1, 2, 2), (2, 1, 2, 4), (1, 2, 2, 4)],
)
def test_a_split_changes_neither_loss_nor_gradient(reference, tp, pp, cp, ranks):
    # Padded and packed, by rows and by tokens.
    # GRPO with reference KL, KDRL, TRRD with dual clip and TIS, OPD; ragged rows, failed rows and a failed group.
    assert max(worst(launch(SCRIPT, ranks, tp, pp, cp, reference))) <= 1e-5
