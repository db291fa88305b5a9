"""Time of examples/doctor.py on a 70B-to-8B run, in an interpreter that may have no torch.

    python benchmarks/doctor.py --python <an interpreter with hydra-core and jinja2 only> --out benchmarks/results/doctor.json

Two model directories with tokenizers of Llama 3's size (128,256 pieces, 280,000 merges) are made up: once with the same
tokenizer (compared by hash), once with two that differ in one piece (both are read). Wall and processor time of the whole
process, median of the repetitions (on a busy machine the second is the one to read); what the run lacks on this machine
(room for 360 GiB of checkpoints, say) is listed by then.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "megatron", "transformers")
LLAMA = {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "vocab_size": 128_256,
         "num_key_value_heads": 8, "tie_word_embeddings": False}  # fmt: skip
SIZES = {
    "Llama-3.1-8B-Instruct": {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
                              "num_attention_heads": 32},
    "Llama-3.3-70B-Instruct": {"num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672,
                               "num_attention_heads": 64},
}  # fmt: skip


def model(directory: Path, sizes: dict, tokenizer: str) -> None:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({**LLAMA, **sizes}))
    (directory / "tokenizer.json").write_text(tokenizer)
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "piece 7", "chat_template": "{{ messages }}"})
    )
    shards = {f"tensor {i}": f"model-{i % 30:05d}.safetensors" for i in range(723)}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    for shard in set(shards.values()):
        (directory / shard).write_text("")


def tokenizer(odd: str) -> str:
    vocabulary = {f"piece {i}": i for i in range(128_000)} | {odd: 128_000}
    merges = [f"piece{i % 5000} piece{i // 7}" for i in range(280_000)]
    added = [{"id": 128_001 + i, "content": f"<|special {i}|>"} for i in range(255)]
    return json.dumps({"model": {"vocab": vocabulary, "merges": merges}, "added_tokens": added})


def children() -> float:
    """Processor seconds of the processes that have ended: what the wall shows where nothing else runs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(python: str, folder: Path, repetitions: int) -> dict:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RLKD_GSRM_TOKEN": "t"}
    command = [python, str(ROOT / "examples" / "doctor.py"), "--config-name=rlkd_70b_to_8b"]
    seconds, processor, done = [], [], None
    for _ in range(repetitions):
        began, used = time.monotonic(), children()
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        seconds.append(time.monotonic() - began)
        processor.append(children() - used)
    assert done is not None and done.returncode in (0, 2), done
    problems = [line for line in done.stdout.splitlines() if line.lstrip()[:1].isdigit()]
    return {"median_s": round(statistics.median(seconds), 3), "fastest_s": round(min(seconds), 3),
        "slowest_s": round(max(seconds), 3),
            "median_processor_s": round(statistics.median(processor), 3), "exit_code": done.returncode,
            "problems": [line.split("=")[0].strip() for line in problems]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    code = f"import importlib.util as u; print([m for m in {HEAVY} if u.find_spec(m)])"
    installed = subprocess.run([options.python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    result = {"installed_of_torch_megatron_transformers": installed, "cores": os.cpu_count(),
              "load_average_1_min": round(os.getloadavg()[0], 1), "repetitions": options.repetitions}  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        for case, odd in (("one tokenizer", "the same"), ("tokenizers that differ in one piece", "another")):
            folder = Path(temporary) / case
            for (name, sizes), piece in zip(SIZES.items(), ("the same", odd)):
                model(folder / "models" / name, sizes, tokenizer(piece))
            (folder / "models" / "Qwen2.5-7B-Instruct").mkdir()
            (folder / "data").mkdir()
            (folder / "data" / "openr1_math.jsonl").write_text("{}\n")
            result[case] = run(options.python, folder, options.repetitions)
    text = json.dumps(result, indent=2)
    if options.out:
        options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
