"""One run with every kind of mistake: all of them are in one report, each with the key to change."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rlkd_nemo.config.load import load
from rlkd_nemo.doctor import models, secrets
from rlkd_nemo.doctor.run import examine, main
from tests.doctor.models import PIECES, write

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def healthy(tmp_path, monkeypatch):
    """Overrides of a run that may start: two model directories, a task, a place to write."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "RLKD_")):
            monkeypatch.delenv(name)
    student, teacher = write(tmp_path / "student"), write(tmp_path / "teacher", num_hidden_layers=8)
    return [
        "task=knights_and_knaves",
        f"task.chat_template={student}",
        f"model.restore_from_path={student}",
        "model.tokenizer.library=huggingface",
        f"model.tokenizer.type={student}",
        f"teacher.restore_from_path={teacher}",
        f"exp_manager.exp_dir={tmp_path}/run",
    ]


def test_a_run_that_may_start(healthy, capsys):
    assert main(healthy) == 0
    out = capsys.readouterr().out
    assert out.startswith("doctor: rlkd_demo may start: trainer 1 node(s) x 2 task(s); tensor 2 x pipeline 1")


def test_fifteen_mistakes_in_one_report(healthy, tmp_path, monkeypatch, capsys):
    pieces = [*PIECES[:7], "other", *PIECES[8:]]
    write(tmp_path / "base", template=None, hidden_size=128, shards=False)
    write(tmp_path / "alien", pieces=pieces, num_key_value_heads=3, max_position_embeddings=64)
    (tmp_path / "a_file").write_text("")
    site = tmp_path / "site" / "megatron_core-0.10.0.dist-info"
    site.mkdir(parents=True)
    (site / "METADATA").write_text("Metadata-Version: 2.1\nName: megatron-core\nVersion: 0.10.0\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    busy = socket.socket()
    busy.bind(("", 0))
    busy.listen()
    port = busy.getsockname()[1]
    for name, value in {"JOB_ID": "7", "JOB_NUM_NODES": "3", "NTASKS_PER_NODE": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr("rlkd_nemo.doctor.places.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    mistakes = {
        "model.num_layer=3": "model.num_layer (override 'model.num_layer=3') is no setting; did you mean model.num_layers?",
        "model.optim.lr=fast": "model.optim.lr='fast' (override 'model.optim.lr=fast') has the wrong type",
        "objective=trd": "override 'objective=trd': wanted one of grpo, kdrl, opd, trrd",
        "rollout.top_p=0.95": "rollout.top_p=0.95 truncates the distribution",
        "trainer.devices=3": "3 ranks is no multiple of model.tensor_model_parallel_size",
        "rlkd.updates_per_batch=5": "rlkd.num_prompts=16 does not divide into rlkd.updates_per_batch=5",
        "gsrm.norm=maximum": "gsrm.norm='maximum' is unknown; wanted one of teacher, none, max",
        f"model.restore_from_path={tmp_path}/base": "lacks model-1.safetensors, which model.safetensors.index.json names",
        f"task.chat_template={tmp_path}/base": "has no chat template",
        f"teacher.restore_from_path={tmp_path}/alien": "token id 7 is 'other' there and 'piece7' to model.tokenizer.type=",
        f"gsrm.llm.prompts={tmp_path}/nowhere": f"gsrm.llm.prompts={tmp_path}/nowhere does not exist",
        f"gsrm.reference_store={tmp_path}/a_file/store": f"cannot be made: {tmp_path}/a_file is a file",
        "gsrm={scorer: service, service: {urls: [http://gsrm1:8700]}}": "environment variable RLKD_GSRM_TOKEN",
        f"layout.trainer.port={port}": f"layout.trainer.port={port} cannot be had",
        "layout.signal_s=90000": "layout.signal_s=90000 is no shorter than layout.time_limit",
    }
    besides = [  # mistakes of the machine, and what the same directories have wrong beside
        "model.* is another model than model.restore_from_path",
        "num_key_value_heads=3, which does not divide by model.tensor_model_parallel_size=2",
        "alien was made for 64 tokens (max_position_embeddings), but model.encoder_seq_length=128",
        "megatron-core 0.10.0 is installed; wanted",
        "SLURM_JOB_NUM_NODES=3, the layout wants 1 (trainer.num_nodes)",
        "SLURM_NTASKS_PER_NODE=2, the layout wants 3 (trainer.devices)",
        "GiB free, but 4 checkpoints of",
    ]
    code = main([*healthy, *mistakes])
    busy.close()
    out = capsys.readouterr().out
    assert code == 2 and len(mistakes) == 15
    unseen = [words for words in [*mistakes.values(), *besides] if words not in out]
    assert not unseen, f"{unseen}\n{out}"
    numbered = [line for line in out.splitlines() if line.lstrip()[:1].isdigit()]
    assert out.splitlines()[0] == f"doctor: {len(numbered)} problems with rlkd_demo:"
    assert len(numbered) == len(mistakes) + len(besides), out  # and nothing that is not wrong


def test_another_end_of_text_is_a_note(healthy, tmp_path, capsys):
    write(tmp_path / "chat", eos="<end>", num_hidden_layers=8)
    assert main([*healthy, f"teacher.restore_from_path={tmp_path}/chat"]) == 2  # the id means another text
    content = json.loads((tmp_path / "student" / "tokenizer.json").read_text())
    for name in ("student", "chat"):
        content["added_tokens"] = [{"id": 60, "content": "<eos>"}, {"id": 61, "content": "<end>"}]
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert main([*healthy, f"teacher.restore_from_path={tmp_path}/chat"]) == 0
    assert "note: the student ends a text with '<eos>', the teacher with '<end>'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", "{", "cannot be read"),
        ("config.json", '{"architectures": ["GPT2LMHeadModel"]}', "is not supported; wanted one of LlamaForCausalLM"),
        ("config.json", '{"architectures": {"a": 1}}', "architectures={'a': 1} is not supported"),
        ("config.json", '{"rope_parameters": [1], "rope_theta": "x"}', "model.rotary_base=10000"),
        ("tokenizer.json", "[]", "is no tokenizer that can be read"),
        ("tokenizer.json", '{"model": {"vocab": {"a": "x"}}}', "is no tokenizer that can be read"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 99}}}', "has vocab_size=64 rows, but"),
        ("tokenizer_config.json", "{}", "names no eos_token"),
        ("model.safetensors.index.json", "{}", "has no weight_map"),
        ("model.safetensors.index.json", None, "has neither model.safetensors.index.json nor model.safetensors"),
    ],
)
def test_damaged_directories(healthy, tmp_path, capsys, file, content, words):
    path = tmp_path / "student" / file
    path.unlink() if content is None else path.write_text(content)
    code = main(healthy)
    out = capsys.readouterr().out
    # Without a readable config.json a directory is none of Hugging Face's; the engine says so when it loads it.
    assert words in out and code == 2, out


def test_only_the_component_that_the_job_is_made_of(healthy, monkeypatch):
    for name, value in {"JOB_ID": "7", "JOB_NUM_NODES": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("RLKD_GSRM_TOKEN", "secret")
    with socket.socket() as free:  # whatever else this machine serves
        free.bind(("", 0))
        port = free.getsockname()[1]
    cfg = load("rlkd_demo", [*healthy, "layout=cpu_loopback", f"gsrm.server.port={port}"])
    of = lambda parts: [f.text for f in examine(cfg, os.environ, parts) if f.stops]  # noqa: E731
    assert of(["gsrm"]) == []
    cfg.model.restore_from_path = "nowhere"  # which a server does not read
    assert of(["gsrm"]) == [] and "nowhere does not exist" in str(of([]))
    assert "the Slurm job has 1 component(s), the layout 2" in of([])[0]
    assert "secret" not in str(of([]))


def test_the_secret_of_a_job_s_own_server_is_made_by_its_script(healthy, monkeypatch):
    monkeypatch.delenv("RLKD_GSRM_TOKEN", raising=False)
    cfg = load("rlkd_demo", [*healthy, "layout=cpu_loopback"])
    found = {one.stops: one.text for one in secrets.findings(cfg, {})}
    assert list(found) == [False] and "the scripts of slurm/ make a secret for each job" in found[False]
    (inside,) = secrets.findings(cfg, {"SLURM_JOB_ID": "7"})  # where the script has made it
    assert inside.stops and "RLKD_GSRM_TOKEN (gsrm.token_env) is not set" in inside.text


def test_a_server_s_port_is_tried_on_the_machine_itself_only(healthy, monkeypatch):
    monkeypatch.setenv("RLKD_GSRM_TOKEN", "secret")
    with socket.socket() as busy:
        busy.bind(("", 0))
        busy.listen()
        taken = f"gsrm.server.port={busy.getsockname()[1]}"
        home = examine(load("rlkd_demo", [*healthy, taken]), os.environ, ["gsrm"])
        away = examine(load("rlkd_demo", [*healthy, taken, "layout=cpu_loopback"]), os.environ, ["gsrm"])
    assert any(f"{taken} cannot be had" in one.text for one in home)
    assert not any("cannot be had" in one.text for one in away)


def test_rows_of_a_gsrm_are_looked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--config-name", "gsrm_7b"]) == 2
    assert "gsrm.training.data, gsrm.evaluation.data=data/gsrm.jsonl does not exist" in capsys.readouterr().out
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "gsrm.jsonl").touch()
    assert main(["--config-name", "gsrm_7b"]) == 2 and "gsrm.jsonl" not in capsys.readouterr().out


def test_what_nothing_can_be_made_of_is_reported_too(capsys):
    assert main(["--config-name", "rlkd_dem"]) == 2
    assert "did you mean rlkd_demo?" in capsys.readouterr().out


def test_architectures_are_the_engine_s():
    from rlkd_nemo.engine.model.families import families

    assert sorted(family.architecture for family in families().values()) == sorted(models.ARCHITECTURES)


def test_nothing_heavy_is_imported_or_needed(healthy):
    code = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'megatron', 'transformers', 'numpy'): raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from rlkd_nemo.doctor.run import main\n"
        "sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *healthy], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
