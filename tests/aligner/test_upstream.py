"""Our example is NeMo-Aligner's REINFORCE example and what RLKD adds to it, nothing else.

What is listed here as RLKD's is taken out of our files, or put back; the rest must be NeMo-Aligner's own, of which only
digests are kept: train_gpt_reinforce_actor.py and gpt_reinforce_actor.yaml of its repository (commits 02899ed, 01bf36b).
With RLKD_ALIGNER_SOURCE, a checkout of v0.7.0, the digests themselves are tested too; upstream_diff.py prints the diff.
"""

import os
from pathlib import Path

import pytest

from tests.aligner.upstream_diff import OURS, THEIRS, digest, settings, statements

SCRIPT, CONFIG = "76282235170aa30b", "129257c34b707838"
# Added, and the five imports that ours stand in for. Names are theirs already (upstream_diff.NAMES).
ADDED = {
    "from rlkd_nemo.aligner import MegatronGPTReinforceActorModel",
    "from rlkd_nemo.aligner import ReinforceTrainer",
    "from rlkd_nemo.aligner import RemoteGPTRMClient",
    "from rlkd_nemo.aligner.checkpoint import load_and_override_model_config",
    "from rlkd_nemo.aligner.compat import begin",
    "from rlkd_nemo.aligner.compat import exiting",
    "from rlkd_nemo.aligner.teacher import load_teacher",
    "from rlkd_nemo.aligner.trainer import retrieve_custom_trainer_state_dict",
    "from rlkd_nemo.config.aligner import read",
    "from rlkd_nemo.config.aligner import read_remote",
    "from rlkd_nemo.config.aligner_groups import register",
    "from rlkd_nemo.config.objectives import needs_teacher",
    "if __name__ == '__main__':\n    begin(__doc__)",
    "register()",
    "@exiting",
    "_, _, objective = read(cfg.trainer.reinforce.get('rlkd'))",
    "read_remote(cfg.remote_rm)",
    "teacher = None",
    "if needs_teacher(objective) and cfg.teacher.restore_from_path:\n"
    "    teacher = load_teacher(cfg.teacher.restore_from_path, cfg.model, trainer, ptl_model)",
}
IMPORTS = [
    "from nemo_aligner.algorithms.reinforce import ReinforceTrainer",
    "from nemo_aligner.models.nlp.gpt.megatron_gpt_reinforce_actor import MegatronGPTReinforceActorModel",
    "from nemo_aligner.models.nlp.gpt.reward_critic_clients import RemoteGPTRMClient",
    "from nemo_aligner.utils.train_script_utils import retrieve_custom_trainer_state_dict",
    "from nemo_aligner.utils.utils import load_and_override_model_config",
]
# Within a statement: ours, theirs.
CHANGED = [
    ("config_path='../../conf/aligner'", "config_path='conf'"),
    ("objective.reference_kl > 0", "cfg.trainer.reinforce.initial_policy_kl_penalty > 0"),
    (", teacher=teacher)", ")"),
]
KEYS_ADDED = {"teacher.restore_from_path", "exp_manager.max_time_per_run"}
KEYS_CHANGED = {
    "defaults": [{"optional tp_overlap@model.ub_tp_comm_overlap_cfg": None}],
    "trainer.reinforce.initial_policy_kl_penalty": 0.01,  # ours is in the loss
    "trainer.reinforce.num_rollouts_per_prompt": 4,
    "exp_manager.explicit_log_dir": "/results",
    "exp_manager.name": "megatron_gpt_reinforce_actor",
    "exp_manager.wandb_logger_kwargs.project": "nemo_aligner_reinforce",
    "exp_manager.wandb_logger_kwargs.name": "gpt3_reinforce_2b",
    "exp_manager.checkpoint_callback_params.filename": "megatron_gpt-{step}-{consumed_samples}-"
    "{reinforce_optimization_step}-{epoch}-{val_rewards:.3f}",
}


def test_the_script_without_what_rlkd_adds_is_nemo_aligners():
    found = statements(OURS[0])
    assert set(found) >= ADDED
    kept = [part for part in found if part not in ADDED]
    for ours, theirs in CHANGED:
        assert sum(ours in part for part in kept) == 1, ours
        kept = [part.replace(ours, theirs) for part in kept]
    imports = [part for part in kept if part.startswith(("from ", "import "))]
    assert digest(sorted(imports + IMPORTS) + kept[len(imports) :]) == SCRIPT


def test_the_yaml_without_what_rlkd_adds_is_nemo_aligners():
    found = settings(OURS[1])
    assert found.keys() >= KEYS_ADDED | KEYS_CHANGED.keys()
    assert all(found[key] != value for key, value in KEYS_CHANGED.items())
    assert digest({key: value for key, value in {**found, **KEYS_CHANGED}.items() if key not in KEYS_ADDED}) == CONFIG


@pytest.mark.skipif(
    "RLKD_ALIGNER_SOURCE" not in os.environ, reason="RLKD_ALIGNER_SOURCE names no checkout of NeMo-Aligner"
)
def test_the_digests_are_those_of_a_checkout():
    script, config = (Path(os.environ["RLKD_ALIGNER_SOURCE"]) / name for name in THEIRS)
    assert (digest(statements(script)), digest(settings(config))) == (SCRIPT, CONFIG)
