"""The plugin in NeMo-Aligner 0.7.0 (megatron-core 0.10) learns what the Megatron-Core path (0.16) learns.

Three steps of gradient descent from the same weights on the same rollouts, GRPO with a reference KL, KDRL and TRRD at
temperature 0.8, ragged rows, one failed row, a padded vocabulary; micro-batches of 1 and 2 in every layout.
"""

import re

import pytest

from tests.aligner import nemo_python as nemo
from tests.ranks import launch

pytestmark = nemo.needed


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "reference.pt"
    launch(nemo.HERE / "reference_ranks.py", 1, path, timeout=600)
    return path


@pytest.mark.timeout(1000)
@pytest.mark.parametrize(("tp", "pp", "dp"), [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)])
def test_loss_gradients_and_metrics_equal_the_megatron_core_paths(reference, tokenizer, tp, pp, dp):
    out = nemo.launch(nemo.HERE / "parity_ranks.py", tp * pp * dp, tp, pp, dp, tokenizer, reference, timeout=800)
    (found,) = re.findall(r"WORST loss (\S+) metric (\S+) gradient (\S+)", out)
    print(f"TP{tp} PP{pp} DP{dp}: largest relative difference of loss, metrics, gradients:", *found)
    assert max(map(float, found)) <= 1e-5
