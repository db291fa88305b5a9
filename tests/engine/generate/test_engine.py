"""Rollouts on real ranks: Megatron's log-probs, and the same samples in every layout."""

from pathlib import Path

import pytest

from tests.ranks import launch

SCRIPT = Path(__file__).with_name("generate_ranks.py")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    path = tmp_path_factory.mktemp("generate") / "samples.json"
    assert "ROLLOUTS HOLD" in launch(SCRIPT, 1, 1, 1, path)
    return path


@pytest.mark.ranks
@pytest.mark.parametrize(("tp", "pp", "ranks"), [(2, 1, 2), (1, 2, 2), (1, 1, 2), (2, 2, 4)])
def test_rollouts_are_megatron_s_and_the_same_in_every_layout(samples, tp, pp, ranks):
    assert "ROLLOUTS HOLD" in launch(SCRIPT, ranks, tp, pp, samples)
