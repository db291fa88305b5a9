"""One GPU: an update and a log-prob pass of a Llama-3.1-8B-shaped student, against what the card can multiply.

The model has the width of Llama-3.1-8B and as many of its layers as fit beside the optimizer (bf16 weights, fp32
gradients, masters and moments: 18 bytes a parameter); sequences of 4,096 tokens. Measured:

- the ceiling: the fastest of a few large bf16 matrix products, in FLOP/s;
- MFU of an update and of a forward-only log-prob pass: model FLOPs (recomputation not counted, the causal half of
  attention, the output layer for response tokens only) over time, over that ceiling;
- the allocator's peak against `predicted_bytes`;
- loss and gradients of a tiny fp32 model on this GPU against CPU ranks;
- `benchmarks/token_logprobs.py --device cuda` at hidden 4096, bf16, 8k to 32k tokens.

    python benchmarks/gpu_step.py --out benchmarks/results/gpu_step.json
    python benchmarks/gpu_step.py --device cpu        # the same script on a CPU, tiny: shows that it runs, no figure

Without a GPU and without `--device cpu` it says so and ends with code 2.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

LLAMA = {
    "hidden_size": 4096, "ffn_hidden_size": 14336, "num_attention_heads": 32, "num_query_groups": 8,
    "rotary_base": 500000.0, "encoder_seq_length": 4096,
}  # fmt: skip
TINY = {
    "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4, "num_query_groups": 2,
    "encoder_seq_length": 64,
}  # fmt: skip
VOCAB, TINY_VOCAB = 128256, 512
BYTES_A_PARAMETER = 2 + 4 + 4 + 4 + 4  # bf16 weight; fp32 gradient, master, two moments


def parameters(model, vocab: int) -> tuple[int, int]:
    """(of one layer, of embedding and output layer)."""
    head = model.hidden_size // model.num_attention_heads
    attention = model.hidden_size * head * (2 * model.num_attention_heads + 2 * model.num_query_groups)
    return attention + 3 * model.hidden_size * model.ffn_hidden_size, 2 * vocab * model.hidden_size


def forward_flops(model, vocab: int, rows: int, length: int, responses: int) -> float:
    """Of one forward pass over `rows` sequences of `length`, the output layer on `responses` tokens of each."""
    layer, outer = parameters(model, vocab)
    attention = 4 * length * model.hidden_size / 2  # scores and their product with values, causal half, a token
    return rows * (length * model.num_layers * (2 * layer + attention) + 2 * responses * outer / 2)


def predicted_bytes(model, vocab: int, length: int, rows: int) -> float:
    """Peak of an update: states, and the activations that a micro-batch keeps (bf16, fused attention)."""
    layer, outer = parameters(model, vocab)
    states = BYTES_A_PARAMETER * (model.num_layers * layer + outer)
    # Inputs of the products and norms of a layer, counted in hidden sizes: 2 norms in and out, q, k, v, attention out,
    # two residual sums; gate, up, their activation and product.
    kept = 8 * model.hidden_size + 2 * model.hidden_size * model.num_query_groups / model.num_attention_heads
    kept += 4 * model.ffn_hidden_size
    return states + 2 * rows * length * model.num_layers * kept


def layers_that_fit(model, vocab: int, free: int, length: int) -> int:
    """As many as leave a tenth of `free` bytes; at most the 32 of the real model."""
    number = 32
    while number > 1 and predicted_bytes(replace(model, num_layers=number), vocab, length, 1) > 0.9 * free:
        number -= 1
    return number


def ceiling(device, size: int, dtype) -> float:
    """FLOP/s of the fastest square product."""
    import torch

    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = min(timed(lambda: a @ b, device) for _ in range(10))
    return 2 * size**3 / best


def timed(work: Callable[[], object], device) -> float:
    """Seconds, the device's queue empty before and after."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def sequences(rows: int, length: int, prompt: int, vocab: int):
    """A batch of random tokens with equal weights."""
    import torch

    from rlkd_nemo.training.batch import SequenceBatch

    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocab, (rows, length), generator=draw).tolist()
    weight = 1.0 / (rows * (length - prompt))
    return SequenceBatch(
        [row[:prompt] for row in tokens],
        [row[prompt:] for row in tokens],
        [torch.full((length - prompt,), weight) for _ in range(rows)],
    )


def objective(log_probs, mask, fields):
    """The mean negative log-prob: every token has a gradient."""
    from rlkd_nemo.losses.batch import TokenLoss

    return TokenLoss(-log_probs, {})


def step(args: argparse.Namespace) -> dict:
    """Times and peak of updates and of log-prob passes."""
    from rlkd_nemo.engine.ranks import init_ranks

    import torch

    from rlkd_nemo.config.schema import Model
    from rlkd_nemo.engine.actor import RLKDActor

    gpu = args.device == "cuda"
    ranks = init_ranks(1, 1, accelerator="gpu" if gpu else "cpu")
    vocab = VOCAB if gpu else TINY_VOCAB
    model = Model(
        **(LLAMA if gpu else TINY), num_layers=2, tensor_model_parallel_size=1, micro_batch_size=1,
        forward_micro_batch_size=1,
    )  # fmt: skip
    length = model.encoder_seq_length
    if gpu:
        model = replace(
            model, num_layers=args.layers or layers_that_fit(model, vocab, torch.cuda.mem_get_info()[0], length)
        )
    actor = RLKDActor(model, vocab, ranks, pad_id=0, precision="bf16")
    prompt = length // 8
    batch = sequences(args.rows, length, prompt, vocab)
    actor.prepare_for_training()
    actor.update(batch, objective)  # optimizer states are made, kernels chosen
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    update = [timed(lambda: actor.update(batch, objective), ranks.device) for _ in range(args.repeats)]
    peak = torch.cuda.max_memory_allocated() if gpu else None
    actor.finish_training()
    score = [
        timed(lambda: actor.get_inference_log_probs(batch.prompts, batch.responses, temperature=1.0), ranks.device)
        for _ in range(args.repeats)
    ]
    top = ceiling(ranks.device, 8192 if gpu else 512, torch.bfloat16)
    forward = forward_flops(model, vocab, args.rows, length, length - prompt)
    return {
        "layers": model.num_layers,
        "rows": args.rows,
        "sequence_length": length,
        "ceiling_tflops": top / 1e12,
        "update_seconds": update,
        "update_mfu": 3 * forward / statistics.median(update) / top,
        "log_prob_seconds": score,
        "log_prob_mfu": forward / statistics.median(score) / top,
        "peak_bytes": peak,
        "predicted_bytes": predicted_bytes(model, vocab, length, 1),
    }


def tiny_gradients(path: Path) -> None:
    """Loss and gradients of a tiny fp32 model with fixed weights, on whatever this process runs on, to a file."""
    from rlkd_nemo.engine.ranks import init_ranks

    import torch

    from rlkd_nemo.config.schema import Model
    from rlkd_nemo.engine.actor import RLKDActor

    model = Model(**TINY, num_layers=2, tensor_model_parallel_size=1, init_method_std=0.1)
    actor = RLKDActor(model, TINY_VOCAB, init_ranks(1, 1), pad_id=0)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for _, parameter in sorted(actor.hidden_model.named_parameters()):
            values = torch.randn(parameter.shape, generator=draw) * 0.1
            parameter.copy_(values + (1.0 if parameter.dim() == 1 else 0.0))
    actor.prepare_for_training_step()
    loss, _ = actor.get_loss_and_metrics(sequences(4, 64, 8, TINY_VOCAB), objective)
    actor.optimizer.prepare_grads()
    grads = {name: parameter.main_grad.cpu() for name, parameter in actor.hidden_model.named_parameters()}
    torch.save({"loss": loss, "grads": grads}, path)


def parity(folder: Path) -> dict:
    """Largest relative difference of loss and gradients, this device against the CPU."""
    import torch

    sides = {}
    for side, hidden in (("here", None), ("cpu", "")):
        environment = {**os.environ} if hidden is None else {**os.environ, "CUDA_VISIBLE_DEVICES": hidden}
        path = folder / f"{side}.pt"
        subprocess.run([sys.executable, __file__, "--tiny-gradients", str(path)], env=environment, check=True)
        sides[side] = torch.load(path)
    here, cpu = sides["here"], sides["cpu"]
    return {
        "loss": abs(here["loss"] - cpu["loss"]) / abs(cpu["loss"]),
        "gradients": max(
            float((here["grads"][name] - grad).abs().max() / grad.abs().max()) for name, grad in cpu["grads"].items()
        ),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--layers", type=int, help="default: as many as fit")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny-gradients", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.tiny_gradients:
        return tiny_gradients(args.tiny_gradients)
    import tempfile

    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device was found; --device cpu shows that the script runs, tiny and without a figure")
        sys.exit(2)
    result = {
        "command": "python benchmarks/gpu_step.py " + " ".join(sys.argv[1:]),
        "date": date.today().isoformat(),
        "hardware": torch.cuda.get_device_name() if args.device == "cuda" else f"CPU ({platform.machine()})",
        "torch": torch.__version__,
        "step": step(args),
    }
    with tempfile.TemporaryDirectory() as folder:
        result["parity_to_cpu"] = parity(Path(folder))
    found = result["step"]
    print(f"{found['layers']} layers, {found['rows']} x {found['sequence_length']} tokens, {result['hardware']}")
    mfu = f"update {found['update_mfu']:.1%}, log-probs {found['log_prob_mfu']:.1%}"
    print(f"ceiling {found['ceiling_tflops']:.2f} TFLOP/s; MFU: {mfu}")
    if found["peak_bytes"]:
        print(f"peak {found['peak_bytes'] / 2**30:.1f} GiB, predicted {found['predicted_bytes'] / 2**30:.1f} GiB")
    print(
        "parity to CPU (fp32, relative): loss {loss:.1e}, gradients {gradients:.1e}".format(**result["parity_to_cpu"])
    )
    if args.device == "cuda":
        table = ROOT / "benchmarks" / "results" / "token_logprobs_gpu.json"
        command = [
            sys.executable,
            str(ROOT / "benchmarks" / "token_logprobs.py"),
            "--device",
            "cuda",
            "--hidden",
            "4096",
        ]
        command += ["--dtype", "bf16", "--tokens", "8192", "16384", "32768", "--recorded", "0", "--out", str(table)]
        subprocess.run(command, check=True)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
