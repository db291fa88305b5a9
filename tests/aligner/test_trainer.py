"""NeMo-Aligner's trainer beside ours on two data-parallel ranks: the parent's faults, bad rewards, updates, counters."""

import re

import pytest

from tests.aligner import nemo_python as nemo

pytestmark = [*nemo.needed, pytest.mark.timeout(1000)]

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
    out = nemo.launch(nemo.HERE / "trainer_ranks.py", 2, tokenizer, nemo.free_port())
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
        "a teacher with another number of log-probs",
        "a teacher with another tokenizer",
        "the teacher can be left out at the end",
        "flask: every prompt once, its whole group",
        "flask: a rank that is free takes the prompts",
        "flask: ranks share the batch",
        "flask: a response keeps its own reward",
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


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)])
def test_ranks_that_share_a_model(tokenizer, tp, pp):
    out = nemo.launch(nemo.HERE / "model_parallel_ranks.py", 2, tokenizer, tp, pp)
    assert not re.findall(r"^FAILED (.+)$", out, re.MULTILINE), out[-3000:]
    assert set(re.findall(r"^SHOWN (.+)$", out, re.MULTILINE)) == {
        "every rank of a model has its rewards",
        "rewards of another shape are every rank's error",
        "any error of the rank that asks is every rank's",
        "ranks of a model have the same rows",
        "and learn from one answer of the teacher",
        "of which every rank has its log-probs",
        "an update's loss and metrics are one",
    }
