"""What examples/demo_gsrm.py does around its programs; the whole of it runs in tests/vllm."""

import json
import sys

import pytest

from rlkd_nemo import demo_gsrm
from rlkd_nemo.config.load import load
from rlkd_nemo.errors import ConfigError, RlkdError
from rlkd_nemo.gsrm import dataset
from rlkd_nemo.launch.children import Children
from rlkd_nemo.tasks.expression_prose import decompose
from tests.integration.conftest import run_example

# In the place of a Python with vLLM: answers on the port that it is given.
SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
assert sys.argv[1:4] == ["-m", "vllm.entrypoints.cli.main", "serve"], sys.argv
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def cfg(tmp_path):
    return load("demo_gsrm", [f"exp_manager.exp_dir={tmp_path}", "gsrm_demo.num_rows=40", "gsrm_demo.held_out_rows=20"])


@pytest.fixture
def model(tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps({"max_position_embeddings": 256}))
    return tmp_path / "hf"


def python(tmp_path, code):
    """A program that runs `code` with whatever arguments it is given."""
    (tmp_path / "code.py").write_text(code)
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path}/code.py "$@"\n')
    program.chmod(0o755)
    return str(program)


def test_rows_vocabulary_and_their_fingerprint(cfg, tmp_path):
    prompts = str(demo_gsrm.resources.files("rlkd_nemo.gsrm") / "prompts_short")
    made = demo_gsrm._write_rows(cfg, tmp_path / "a", prompts)
    train, held_out = (dataset.read(tmp_path / "a" / f"{name}.jsonl", "key") for name in ("train", "held_out"))
    assert len(train) >= 38 and len(held_out) == 20
    assert not {row.problem for row in train} & {row.problem for row in held_out}
    assert all(list(row.steps) == decompose(row.text) for row in train + held_out)
    assert demo_gsrm._write_rows(cfg, tmp_path / "b", prompts) == made
    cfg.gsrm_demo.altered = 0.0
    assert demo_gsrm._write_rows(cfg, tmp_path / "b", prompts) != made
    cfg.task.style = "letters"
    with pytest.raises(ConfigError, match=r"task\.style=prose"):
        demo_gsrm._write_rows(cfg, tmp_path / "b", prompts)


def test_a_trained_gsrm_is_used_again_only_if_nothing_of_it_changed(cfg, tmp_path):
    # In the place of the real examples/train_gsrm.py: counts, and makes what it is asked for.
    (tmp_path / "train_gsrm.py").write_text(
        "import pathlib, sys\n"
        "given = dict(text.split('=', 1) for text in sys.argv[3:])\n"
        "pathlib.Path(given['gsrm.training.export']).mkdir()\n"
        "with open(pathlib.Path(__file__).parent / 'count', 'a') as count:\n"
        "    count.write(given['exp_manager.resume_if_exists'] + ' ')\n"
    )

    def train(rows):
        with Children() as children:
            demo_gsrm._train(cfg, children, tmp_path, tmp_path, "prompts", rows)
        return (tmp_path / "count").read_text().split()

    assert train("rows a") == ["false"]
    assert train("rows a") == ["false"]  # there already
    assert train("rows b") == ["false", "false"]
    (tmp_path / "gsrm" / "made_of.json").unlink()  # stopped in the middle
    assert train("rows b") == ["false", "false", "true"]
    cfg.gsrm_demo.training = ["trainer.sft.max_steps=7"]
    assert train("rows b") == ["false", "false", "true", "false"]


def test_a_server_is_waited_for(cfg, model, tmp_path):
    with Children() as children:
        address = demo_gsrm._serve_model(cfg, children, python(tmp_path, SERVER), model, tmp_path)
        assert address.startswith("http://127.0.0.1:") and demo_gsrm._answers(address.replace("/v1", "/health"))
    assert not demo_gsrm._answers(address.replace("/v1", "/health"))


def test_a_server_that_dies_is_told(cfg, model, tmp_path):
    broken = python(tmp_path, "raise SystemExit('no kernel for heads of 24')")
    with Children() as children, pytest.raises(RlkdError, match="(?s)vLLM ended with code 1.*no kernel for heads"):
        demo_gsrm._serve_model(cfg, children, broken, model, tmp_path)


def test_without_a_vllm_it_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.delenv("RLKD_VLLM_PYTHON", raising=False)
    ended = run_example("demo_gsrm", f"exp_manager.exp_dir={tmp_path}/run")
    assert ended.code == 2 and "RLKD_VLLM_PYTHON" in ended.err and not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="no-such-program is no program"):
        demo_gsrm._vllm_python(load("demo_gsrm", ["gsrm_demo.vllm_python=no-such-program"]))


def test_figures_that_fall_short_are_named(cfg, tmp_path, monkeypatch):
    class Compared:
        agreement = 0.9

        def as_dict(self):
            return {"agreement": 0.9}

    monkeypatch.setattr(demo_gsrm, "agreement", lambda *given: Compared())
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss/loss": 0.5}\n')
    figures = {"parse_rate": 1.0, "steps": {"f1": 0.5}, "rows": 20, "failures": {}}
    with pytest.raises(demo_gsrm.GateError, match=r"gsrm_step_f1=0\.5 .*min_step_f1=0\.9; reward_agreement=0\.9"):
        demo_gsrm._finish(cfg, tmp_path, figures, {"rlkd": 1.0}, 2.0)
    assert json.loads((tmp_path / "summary.json").read_text())["gsrm_step_f1"] == 0.5
