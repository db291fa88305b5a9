"""The 70B-to-8B run as it is configured, on two CPU ranks with two tiny models in Hugging Face's form.

What stays the same: both directories, chat template, mathematics, TRRD, sequence parallelism, packing, recomputation, the
distributed optimizer, sampling on shards. What is smaller: sizes, lengths and ranks; structure is scored by rules.
"""

import json

import pytest
import torch
import transformers
import yaml
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tests.integration.conftest import read_metrics, run_example

pytestmark = pytest.mark.ranks

ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}  # fmt: skip
TINY = [
    "layout=local", "gsrm=embedded", "trainer.precision=32", "trainer.devices=2", "trainer.accelerator=cpu",
    "model.tensor_model_parallel_size=2", "model.num_layers=2", "model.hidden_size=32", "model.ffn_hidden_size=64",
    "model.num_attention_heads=4", "model.num_query_groups=2", "model.kv_channels=8", "model.encoder_seq_length=512",
    "model.micro_batch_tokens=1024", "model.forward_micro_batch_tokens=1024", "model.optim.sched.warmup_steps=0",
    "rollout.max_new_tokens=24", "rlkd.num_prompts=2", "rlkd.group_size=4", "trainer.rlkd.max_steps=1",
    "trainer.rlkd.val_check_interval=0", "task.validation_fraction=0.1",
]  # fmt: skip


def write_model(directory, layers, hidden, eos):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=260, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers, rms_norm_eps=1e-5,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=131072,
        initializer_range=0.15, rope_parameters=ROPE,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<|turn|>", special=True)])
    backend.save(str(directory / "tokenizer.json"))
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|turn|>{% endfor %}assistant: "
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos, "chat_template": template}))


def test_the_doctor_lets_it_start_and_it_trains(tmp_path, monkeypatch):
    write_model(tmp_path / "models" / "Llama-3.1-8B-Instruct", 2, 32, "<|end|>")
    write_model(tmp_path / "models" / "Llama-3.3-70B-Instruct", 4, 64, "<|turn|>")
    solved = "<think>\n[Meta-reasoning 1]: Add. [Sub-problem 1]: {0}+1? [Answer 1]: {1}\n</think>\n\\boxed{{{1}}}"
    rows = [
        {"problem": f"What is {i} + 1?", "answer": str(i + 1), "generations": [solved.format(i, i + 1)]}
        for i in range(200)
    ]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "openr1_math.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)  # models/, data/ and results/ stand in the working directory

    looked = run_example("doctor", "--config-name=rlkd_70b_to_8b", *TINY)
    assert looked.code == 0, looked.out + looked.err
    assert "may start" in looked.out and "the teacher's term is left out" in looked.out
    ended = run_example("train_rlkd", "--config-name=rlkd_70b_to_8b", *TINY)
    assert ended.code == 0, ended.err
    assert "its term is left out at '<|end|>'" in ended.err

    directory = tmp_path / "results" / "rlkd_70b_to_8b"
    saved = yaml.safe_load((directory / "config.yaml").read_text())
    assert saved["objective"]["alpha"] == 0.5 and saved["model"]["restore_from_path"] == "models/Llama-3.1-8B-Instruct"
    (line,) = read_metrics(directory)
    assert line["reward/structure_count"] == 8 and line["reward/failed_fraction"] == 0
