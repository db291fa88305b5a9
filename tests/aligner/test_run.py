"""A whole run of the shipped example: real trainer, client and Triton server, tiny student, teacher and problems, two
data-parallel ranks, two updates a rollout batch, each taken twice."""

import pytest

from tests.aligner import nemo_python as nemo
from tests.aligner.runs import logged, train

pytestmark = [*nemo.needed, pytest.mark.timeout(1500)]


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


def test_adapters_learn_and_resume_and_their_reference_is_the_model_beneath(models, reward_port, tmp_path):
    more = {
        "model.peft.peft_scheme": "lora", "model.peft.lora_tuning.adapter_dim": 4, "trainer.reinforce.max_steps": 2,
        "trainer.reinforce.save_interval": 1, "+trainer.reinforce.rlkd.objective.reference_kl": 0.05,
    }  # fmt: skip
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train(models, straight, reward_port, **more)
    train(models, killed, reward_port, die_at=2, code=1, **more)  # a step after its checkpoint
    train(models, killed, reward_port, **more)
    numbers = logged(straight)
    assert logged(killed) == numbers
    # No copy of the start weights is kept: with the adapters off, the model is its own reference, first the old policy too.
    reference, old = numbers["train_optim/kl_ref"], numbers["train_optim/kl_old"]
    assert reference[0] == old[0] and reference[1] > old[1]
    weights = 4 * 44_000  # bytes of the model's own, which no checkpoint of adapters holds
    sizes = [path.stat().st_size for path in (straight / "checkpoints").rglob("*") if path.is_file()]
    assert sizes and sum(sizes) < 2 * weights, sizes
