"""What a user may get wrong, through the shipped script with the real NeMo: exit code 2 and a sentence, no traceback."""

import io
import tarfile

import pytest

from tests.aligner import nemo_python as nemo
from tests.aligner.conftest import serving
from tests.aligner.runs import EXAMPLE, arguments

pytestmark = [*nemo.needed, pytest.mark.timeout(1000)]


def refused(models, tmp_path, port=1, MASTER_PORT="0", **changes):
    script = nemo.HERE / "run_example.py"
    command = [EXAMPLE, *arguments(models, tmp_path, port, 1, **changes)]
    out = nemo.run(script, *command, code=2, **SINGLE, MASTER_PORT=MASTER_PORT)
    assert "Traceback" not in out[out.rfind("error: ") :], out[-3000:]
    return "\n".join(line for line in out.splitlines() if line.startswith("error: "))


SINGLE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrained_checkpoint.restore_from_path": "nowhere.nemo"}, "there is no such file or directory"),
        ({"+model.hidden_size": 96}, "model.hidden_size=96, but"),
        ({"+trainer.reinforce.rlkd.epoch": 2}, "rlkd.epoch is no setting; did you mean epochs?"),
    ],
)
def test_a_wrong_setting_or_checkpoint_is_told_before_anything_is_loaded(models, tmp_path, changes, message):
    assert message in refused(models, tmp_path, **changes)


def test_a_file_that_is_no_checkpoint(models, tmp_path):
    (tmp_path / "broken.nemo").write_text("this is no archive")
    message = refused(models, tmp_path, **{"pretrained_checkpoint.restore_from_path": tmp_path / "broken.nemo"})
    assert "is no .nemo checkpoint that NeMo can read" in message


def test_a_checkpoint_of_another_kind_of_model(models, tmp_path):
    path, text = (
        tmp_path / "t5.nemo",
        b"target: nemo.collections.nlp.models.MegatronT5Model\nencoder: {num_layers: 2}\n",
    )
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo("model_config.yaml")
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text))
    message = refused(models, tmp_path, **{"pretrained_checkpoint.restore_from_path": path})
    assert "t5.nemo holds a nemo.collections.nlp.models.MegatronT5Model; wanted a GPT model of NeMo" in message


def test_what_does_not_divide_is_told_with_its_keys(models, tmp_path):
    # 16 prompts of 8 rollouts in updates of 60, five sequences at a time: told before the first rollout.
    more = {"model.global_batch_size": 60, "model.micro_batch_size": 5, "teacher.restore_from_path": "null"}
    port, master = nemo.free_port(), str(nemo.free_port())
    with serving(models, port):
        message = refused(models, tmp_path, port, **more, MASTER_PORT=master)
    assert "model.global_batch_size=60 is no multiple of trainer.reinforce.num_rollouts_per_prompt=8" in message
    assert "= 128 is no multiple of model.global_batch_size=60" in message
    assert "objective.name=trrd reads a teacher and none was given" in message


def test_a_run_without_its_reward_server_ends_in_seconds(models, tmp_path):
    script = nemo.HERE / "run_example.py"
    more = {"remote_rm.ready_timeout_s": 2}
    command = [EXAMPLE, *arguments(models, tmp_path, nemo.free_port(), 1, **more)]
    out = nemo.run(script, *command, code=1, MASTER_PORT=str(nemo.free_port()), **SINGLE)
    assert "error: reward server http://localhost:" in out and "is not reachable" in out
