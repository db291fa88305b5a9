"""The shipped files, without NeMo: they compose, break no rule, and what names a checkpoint is read back."""

import re

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from rlkd_nemo.aligner.checkpoint import architecture_problems
from rlkd_nemo.aligner.serving import build_desk, read
from rlkd_nemo.config import aligner_groups
from rlkd_nemo.config.aligner import Inference, RemoteRm, batch_problems, read_remote
from rlkd_nemo.config.aligner import read as read_rlkd
from rlkd_nemo.config.load import conf_directory
from rlkd_nemo.config.objectives import TRRD
from rlkd_nemo.errors import ConfigError
from tests.aligner import nemo_python as nemo

for name, function in {
    "multiply": lambda x, y: x * y,
    "int_div": lambda x, y: x // y,
    "subtract": lambda x, y: x - y,
}.items():
    OmegaConf.register_new_resolver(name, function, replace=True)
aligner_groups.register()


def composed(name, *overrides):
    with initialize_config_dir(str(conf_directory() / "aligner"), version_base="1.3"):
        return compose(name, list(overrides))


def test_the_actors_file_composes_and_breaks_no_rule():
    cfg = composed("gpt_rlkd_actor")
    OmegaConf.set_struct(cfg, False)  # what comes with the checkpoint
    cfg.model.tensor_model_parallel_size = 8
    cfg.model.pipeline_model_parallel_size = 1
    assert read_rlkd(cfg.trainer.reinforce.rlkd)[1:] == ("trrd", TRRD())
    assert batch_problems(cfg.trainer.reinforce, cfg.model, 8) == []
    OmegaConf.to_container(cfg, resolve=True)


def leaves(tree, prefix=""):
    for key, value in tree.items():
        yield from leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]


@pytest.mark.parametrize(
    ("name", "defaults"), [("gpt_rlkd_actor", aligner_groups.actor), ("inference_gsrm", aligner_groups.server)]
)
def test_a_default_is_written_down_once(name, defaults):
    written = dict(leaves(OmegaConf.to_container(OmegaConf.load(conf_directory() / "aligner" / f"{name}.yaml"))))
    again = [key for key, value in leaves(defaults()) if key in written and written[key] == value]
    assert not again, f"{name}.yaml repeats {again}"
    got = dict(leaves(OmegaConf.to_container(composed(name))))
    assert {key: got[key] for key, value in leaves(defaults()) if key not in written} == {
        key: value for key, value in leaves(defaults()) if key not in written
    }


def test_the_clients_section_becomes_typed_settings():
    cfg = composed("gpt_rlkd_actor", "remote_rm.request_timeout_s=20")
    remote, address, width = read_remote(cfg.remote_rm)
    assert remote == RemoteRm(request_timeout_s=20.0)
    assert (address.name, address.ip, address.port, width) == (Inference.model_name, "localhost", Inference.port, 4096)
    # The other ranks of a model wait as long, in a process group that gives up after half an hour.
    assert RemoteRm().request_timeout_s < 1800
    # NeMo-Aligner's own file has no deadlines.
    assert read_remote({"reward_model": {"name": "a", "ip": "b", "port": 1}})[0] == RemoteRm()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"request_timeout": 5}, "remote_rm.request_timeout is no setting; did you mean request_timeout_s?"),
        ({"ready_timeout_s": 0}, "remote_rm.ready_timeout_s=0.0 is out of range"),
        ({"ready_timeout_s": "soon"}, "remote_rm: ready_timeout_s"),
        ({"pad_to_length": 0}, "remote_rm.pad_to_length=0 is out of range"),
        ({"pad_to_length": True}, "remote_rm.pad_to_length=True is out of range"),
        ({"reward_model": "host:5555"}, "remote_rm.reward_model='host:5555'; wanted a section of name, ip, port"),
        ({"reward_model": {"name": "a", "ip": "b"}}, "remote_rm.reward_model.port is missing"),
        ({"reward_model": {"name": "a", "ip": "b", "port": 70000}}, "remote_rm.reward_model.port=70000 is no port"),
    ],
)
def test_a_wrong_clients_section_is_refused(change, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_remote({"reward_model": {"name": "a", "ip": "b", "port": 1}, **change})


def test_the_checkpoints_name_carries_every_counter_and_the_step_first():
    name = composed("gpt_rlkd_actor").exp_manager.checkpoint_callback_params.filename
    found = re.findall(r"\{(\w+)[:}]?", name)
    assert found[0] == "step"  # NeMo-Aligner reads the first `step=`
    assert set(found) == {
        "step", "consumed_samples", "reinforce_optimization_step", "consumed_rollouts", "epoch", "val_rewards",
    }  # fmt: skip


def test_the_servers_file_becomes_typed_settings():
    inference, cfg = read(OmegaConf.to_container(composed("inference_gsrm", "inference.port=6000")))
    assert inference == Inference(port=6000)
    assert (cfg.reward.outcome, cfg.task.path, cfg.model.tokenizer.library) == (3.0, "problems.jsonl", "huggingface")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inference": {"ports": 1}}, "inference.ports is no setting; did you mean port?"),
        ({"inference": {"port": "five"}}, "inference.port='five'"),
        ({"inference": {"port": 70000}}, "inference.port=70000 is no port"),
        ({"rewards": {"outcome": 1}}, "rewards is no section; did you mean reward?"),
        ({"reward": {"outcom": 1}}, "reward.outcom"),
        ({"gsrm": {"judge": "llm"}}, "gsrm"),
        (
            {"tokenizer": {"library": "sentencepiece", "model": "a.model"}},
            "sentencepiece is not read here; save it once as a",
        ),
    ],
)
def test_a_wrong_servers_file_is_refused(change, message):
    tree = OmegaConf.to_container(composed("inference_gsrm"))
    with pytest.raises(ConfigError, match=re.escape(message)):
        read({**tree, **change})


def test_a_server_wants_problems_that_can_be_looked_up():
    _, cfg = read({"task": {"name": "expressions"}, "tokenizer": {"library": "task"}})
    with pytest.raises(ConfigError, match=r"task.name must be prompts"):
        build_desk(cfg)


def test_a_checkpoint_of_another_architecture_is_told_key_by_key():
    saved = {"target": "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel",
             "mcore_gpt": True, "hidden_size": 64, "num_layers": 2}  # fmt: skip
    assert architecture_problems("x.nemo", saved, {"hidden_size": 64, "micro_batch_size": 1}) == []
    (problem,) = architecture_problems("x.nemo", saved, {"hidden_size": 32})
    assert problem == "model.hidden_size=32, but x.nemo has 64; leave the key to the checkpoint"
    other = {**saved, "target": "nemo.collections.nlp.models.MegatronT5Model", "mcore_gpt": False}
    problems = architecture_problems("x.nemo", other, {})
    assert "wanted a GPT model of NeMo" in problems[0] and "mcore_gpt=False" in problems[1]


def test_the_scripts_say_what_is_missing():
    # In an environment without NeMo; --help works there (tests/contracts/test_imports.py).
    for script in sorted((nemo.ROOT / "examples" / "aligner").glob("*.py")):
        text = script.read_text()
        assert text.index("begin(__doc__") < text.index("hydra")
