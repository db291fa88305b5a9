import pytest
from omegaconf import OmegaConf

from rlkd_nemo.config.aligner import batch_problems, read
from rlkd_nemo.config.objectives import KDRL, TRRD
from rlkd_nemo.errors import ConfigError


def sections(**changes):
    """`trainer.reinforce` and `model` of a small run; dotted keys change them."""
    cfg = OmegaConf.create(
        {
            "trainer": {"num_rollouts_per_prompt": 4, "model_gbs": 8, "initial_policy_kl_penalty": 0.0},
            "model": {
                "micro_batch_size": 2,
                "reinforce": {
                    "num_rollout_samples": 4, "forward_micro_batch_size": 2, "rollout_micro_batch_size": 2,
                    "val_rollout_micro_batch_size": 2, "num_val_samples": 4,
                    "sampling_params": {"use_greedy": False, "temperature": 1.0, "top_k": 0, "top_p": 1.0,
                                        "repetition_penalty": 1.0},
                },
            },
        }
    )  # fmt: skip
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value)
    return cfg.trainer, cfg.model


def test_the_section_becomes_typed_settings():
    settings, name, objective = read(
        OmegaConf.create({"epochs": 2, "objective": {"name": "kdrl", "beta": 0.1, "estimator": "k3"}})
    )
    assert (settings.epochs, settings.advantage_std, name) == (2, "population", "kdrl")
    assert objective == KDRL(beta=0.1, estimator="k3")
    assert read(None)[1:] == ("trrd", TRRD())


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"epoch": 2}, "rlkd.epoch is no setting; did you mean epochs?"),
        ({"epochs": "many"}, "epochs"),
        ({"epochs": 0}, "wanted at least 1"),
        ({"advantage_std": "some"}, "wanted one of population, sample, none"),
        ({"max_failed_fraction": 2.0}, "wanted 0 to 1"),
        ({"objective": {"name": "gspo"}}, "wanted one of grpo, kdrl, trrd, opd"),
        ({"objective": {"name": "grpo", "alpha": 0.5}}, "objective.alpha is no setting of grpo"),
        ({"objective": {"name": "trrd", "alpha": 1.5}}, r"wanted a number in \[0, 1\]"),
        ({"objective": {"name": "trrd", "alpha": "half"}}, "alpha"),
        ({"objective": {"name": "grpo", "tis_cap": 2.0}}, "report no log-probs"),
        ({"objective": {"name": "kdrl", "kd_mask": "group"}}, "which responses are correct"),
    ],
)
def test_a_wrong_setting_is_a_sentence_with_its_key(section, message):
    with pytest.raises(ConfigError, match=message) as error:
        read(section)
    assert "trainer.reinforce.rlkd" in str(error.value)


def test_batches_that_divide_are_accepted():
    assert batch_problems(*sections(), 2) == []


@pytest.mark.parametrize(
    ("changes", "dp", "message"),
    [
        ({"trainer__model_gbs": 6}, 1, "an optimizer update takes whole groups"),
        ({"trainer__model_gbs": 12, "model__micro_batch_size": 1}, 1, "= 16 is no multiple of model.global_batch_size=12"),
        ({"model__micro_batch_size": 3}, 1, "no multiple of model.micro_batch_size=3 x 1 data-parallel"),
        ({}, 8, "x 8 data-parallel ranks"),
        ({"model__reinforce__forward_micro_batch_size": 3}, 1, "forward_micro_batch_size=3"),
        ({"model__reinforce__num_val_samples": 3}, 1, "num_val_samples=3"),
        ({"trainer__num_rollouts_per_prompt": 1}, 1, "at least 2 rollouts"),
        ({"trainer__initial_policy_kl_penalty": 0.01}, 1, "objective.reference_kl"),
        ({"model__reinforce__sampling_params__top_p": 0.9}, 1, "top_p=0.9"),
        ({"model__reinforce__sampling_params__use_greedy": True}, 1, "use_greedy=True"),
        ({"model__reinforce__sampling_params__temperature": 0.0}, 1, "temperature=0.0"),
        ({"model__context_parallel_size": 2}, 1, "context_parallel_size=2"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_a_sentence_with_its_key(changes, dp, message):
    assert any(message in problem for problem in batch_problems(*sections(**changes), dp))
