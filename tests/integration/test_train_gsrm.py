"""A GSRM from a file of rows to a Hugging Face directory, at the command line."""

import json
from importlib import resources

import pytest

from rlkd_nemo import tasks
from rlkd_nemo.config.schema import Config, ExpressionsTask
from rlkd_nemo.errors import ConfigError, InputError
from rlkd_nemo.gsrm import dataset
from rlkd_nemo.gsrm.prompting import Prompts
from rlkd_nemo.gsrm.vocabulary import write_tokenizer
from rlkd_nemo.tasks.expression_labels import texts
from tests.integration.conftest import read_metrics, run_example

SHORT = str(resources.files("rlkd_nemo.gsrm") / "prompts_short")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("gsrm")
    made = texts(tasks.build(ExpressionsTask(style="prose")), "train", 0, "2", 40)
    rows = [
        dataset.DecompositionRow(f"d{i}", "math", problem.prompt, text, tuple(steps))
        for i, (problem, text, steps) in enumerate(made)
    ]
    # And a verdict alone, and those of a whole response.
    problem, pair = rows[0].problem, dataset.Pair({"meta": "c"}, {"meta": "b"}, {"meta": False})
    rows += [dataset.VerdictRow("v", problem, "meta", "c", "c", True), dataset.ResponseRow("a", problem, (pair, pair))]
    (path / "rows.jsonl").write_text("".join(map(dataset.line, rows)))
    prompts = Prompts(SHORT)
    write_tokenizer(
        path / "tokenizer", [dataset.conversation(row, prompts, "json").messages[1]["content"] for row in rows]
    )
    return path


@pytest.mark.ranks
def test_one_pass_over_the_rows_and_an_export_that_a_server_can_load(folder):
    arguments = [
        "--config-name", "gsrm_tiny", f"gsrm.training.data={folder}/rows.jsonl", f"exp_manager.exp_dir={folder}/run",
        f"model.tokenizer.type={folder}/tokenizer", f"gsrm.llm.prompts={SHORT}", "data.global_batch_size=8",
        "gsrm.training.epochs=1", "model.num_layers=1", "model.hidden_size=32", "model.ffn_hidden_size=48",
        "trainer.devices=1", "model.optim.sched.warmup_ratio=0.5", "model.encoder_seq_length=1500",
    ]  # fmt: skip
    ended = run_example("train_gsrm", *arguments)
    assert ended.code == 0, ended.err
    metrics = read_metrics(folder / "run")
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]  # 42 rows in batches of 8
    assert metrics[-1]["loss/loss"] < metrics[0]["loss/loss"]
    rates = [line["loss/learning_rate"] for line in metrics]
    assert rates[:3] == pytest.approx([1e-3, 2e-3, 3e-3]) and 3e-3 > rates[3] > rates[4] > rates[5]

    transformers = pytest.importorskip("transformers")
    export = folder / "run" / "hf"
    model = transformers.AutoModelForCausalLM.from_pretrained(export)
    tokens = transformers.AutoTokenizer.from_pretrained(export)
    assert model.config.vocab_size == len(tokens) and tokens.eos_token_id == model.generation_config.eos_token_id
    asked = tokens.apply_chat_template([{"role": "user", "content": "c"}], tokenize=False, add_generation_prompt=True)
    assert asked == "<user>c<assistant>"
    assert json.loads((export / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_what_is_missing_is_named(tmp_path):
    jobs = pytest.importorskip("rlkd_nemo.jobs")
    cfg = Config()
    cfg.exp_manager.exp_dir = str(tmp_path)
    with pytest.raises(ConfigError, match=r"gsrm\.training\.data is not set"):
        jobs.train_gsrm(cfg, None)
    cfg.gsrm.training.data, cfg.gsrm.training.export = "rows.jsonl", str(tmp_path)
    with pytest.raises(InputError, match=r"exists already.*gsrm\.training\.export"):
        jobs.train_gsrm(cfg, None)
    cfg.gsrm.training.export = None
    with pytest.raises(ConfigError, match="has no chat template"):
        jobs.train_gsrm(cfg, None)
