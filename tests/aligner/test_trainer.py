"""NeMo-Aligner's trainer beside ours on two data-parallel ranks: the parent's faults, bad rewards, updates, counters."""

import re

import pytest

from tests.aligner import nemo_python as nemo

pytestmark = nemo.needed

FAULTS = {
    "data-parallel chunking": [
        "parent: every data-parallel rank trains on the whole batch",
        "ours: data-parallel ranks share the batch",
    ],
    "counting of prompts": ["parent: rollouts are counted as prompts", "ours: prompts are counted"],
    "KL penalty 0": [
        "parent: a KL penalty of 0 fails",
        "ours: a KL penalty of 0 works",
        "ours: with it, a KL to the start model in the loss",
    ],
}


@pytest.fixture(scope="module")
def shown(tokenizer):
    out = nemo.launch(nemo.HERE / "trainer_ranks.py", 2, tokenizer)
    assert not re.findall(r"^FAILED (.+)$", out, re.MULTILINE)
    return re.findall(r"^SHOWN (.+)$", out, re.MULTILINE)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_parent_class_is_not_ours(shown, fault):
    assert set(FAULTS[fault]) <= set(shown)


@pytest.mark.parametrize(
    "what",
    [
        "an error of the first rank is every rank's",
        "rewards of another shape",
        "rewards of another dtype",
        "an infinite reward",
        "too many failures",
        "a group of NaN has no weight and is counted",
        "the other rows have",
        "and the mean reward is theirs",
        "a global batch that does not divide",
        "no teacher for trrd",
        "any teacher of the protocol, asked for this rank's share",
        "the teacher can be left out at the end",
        "counters beyond float32 are restored",
        "ranks with different checkpoints",
        "an update without a scored rollout leaves the weights alone",
        "a loss that is not finite",
        "and the weights stay",
        "an update moves the weights",
        "two epochs are two updates",
        "their metrics are there",
    ],
)
def test_the_trainer(shown, what):
    assert what in shown
