"""Names that users and tests rely on, with the signatures they call."""

import importlib
import inspect

import pytest

NAMES = {
    "rlkd_nemo.losses.batch:TokenBatch": (
        "log_probs", "old_log_probs", "advantages", "mask", "teacher_log_probs", "teacher_mask", "ref_log_probs",
        "sampler_log_probs",
    ),
    "rlkd_nemo.losses.trrd:trrd": ("batch", "settings", "step"),
    "rlkd_nemo.losses.grpo:grpo": ("batch", "settings", "step"),
    "rlkd_nemo.losses.kdrl:kdrl": ("batch", "settings", "step"),
    "rlkd_nemo.losses.opd:opd": ("batch", "settings", "step"),
    "rlkd_nemo.losses.reduce:token_weights": ("mask", "valid", "how"),
    "rlkd_nemo.advantages:group_advantages": ("rewards", "groups", "valid", "std"),
    "rlkd_nemo.gsrm.steps:parse": ("text",),
    "rlkd_nemo.gsrm.steps:format": ("steps",),
    "rlkd_nemo.gsrm.alignment:structure_reward": ("student", "teacher", "judge", "norm"),
    "rlkd_nemo.config.load:load": ("config_name", "overrides", "config_dir"),
    "rlkd_nemo.config.load:cli": ("main", "default", "ranks", "description"),
    "rlkd_nemo.config.rules:check": ("cfg",),
    "rlkd_nemo.training.fit:RLKDTrainer": (),
    "rlkd_nemo.engine.actor:RLKDActor": (),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_there_with_its_arguments(name):
    module, _, attribute = name.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    arguments = list(inspect.signature(found).parameters)
    wanted = list(NAMES[name])
    assert [argument for argument in arguments if argument in wanted] == wanted
    assert inspect.getdoc(found)


@pytest.mark.parametrize(
    "method",
    [
        "prepare_for_training", "get_loss_and_metrics", "prepare_for_training_step", "finish_training_step",
        "finish_training", "prepare_for_inference", "infer", "get_inference_log_probs", "finish_inference",
    ],
)  # fmt: skip
def test_the_actor_has_the_life_cycle_of_nemo_aligner(method):
    actor = importlib.import_module("rlkd_nemo.engine.actor").RLKDActor
    assert inspect.getdoc(getattr(actor, method))
