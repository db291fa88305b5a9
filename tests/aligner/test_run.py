"""A whole run of the shipped example: real trainer, client and Triton server, tiny student, teacher and problems, two
data-parallel ranks, two updates a rollout batch, each taken twice."""

import pytest

from tests.aligner import nemo_python as nemo
from tests.aligner.runs import logged, train

pytestmark = [*nemo.needed, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def straight(models, reward_port, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    train(models, folder, reward_port, ranks=2)
    return logged(folder)


def test_the_held_out_reward_rises(straight):
    rewards = straight["val_rollouts/rewards"]
    first, last = rewards[min(rewards)], rewards[max(rewards)]
    print("held-out reward (of 6) by step:", {step: round(value, 3) for step, value in rewards.items()})
    assert last > first + 1.0


def test_what_is_counted(straight):
    # 16 prompts a step, eight rollouts each; two updates of 64 over two data-parallel ranks, two epochs.
    assert straight["train_rollouts/consumed_samples"] == {step: 16.0 * (step + 1) for step in range(12)}
    assert straight["train_rollouts/consumed_rollouts"] == {step: 128.0 * (step + 1) for step in range(12)}
    assert straight["train_optim/optim_step"][11] == 47.0
    assert set(straight["train_rollouts/failed_fraction"].values()) == {0.0}
    assert all(value > 0 for value in straight["train_optim/teacher_influence_share"].values())


def test_a_run_that_was_killed_goes_on_with_the_same_numbers(straight, models, reward_port, tmp_path):
    train(models, tmp_path, reward_port, ranks=2, die_at=8, code=1)  # two steps after its checkpoint
    assert max(logged(tmp_path)["train_optim/loss"]) == 7
    train(models, tmp_path, reward_port, ranks=2)
    assert logged(tmp_path) == straight


def test_a_run_whose_time_is_up_saves_and_ends(models, reward_port, tmp_path):
    # Before Slurm ends it, which would save nothing (slurm/aligner_rlkd.sh).
    more = {"exp_manager.max_time_per_run": "00:00:00:01"}
    train(models, tmp_path, reward_port, ranks=1, **more)
    assert set(logged(tmp_path)["train_rollouts/rewards"]) == {0}
    assert any("step=1-" in path.name for path in (tmp_path / "checkpoints").iterdir())
