"""Selected-token log-probs without the logits: time and peak memory of forward and backward.

Sides, all in one process and in turns:

- `ours`: `rlkd_nemo.engine.token_log_probs`, which returns the entropies too.
- `naive`: all logits, `log_softmax`, gather.
- `trl selective`, `trl chunked`: the two functions that TRL ships (`selective_log_softmax` over all logits;
  `ChunkedLogProbFunction`, which recomputes as ours does), imported from TRL itself.
- `aligner`: NeMo-Aligner's distributed scheme, written after its description: soft-max of all logits kept for backward,
  a one-hot of the target subtracted there.

Three measurements:

- every token live (random gradients), 1k to 8k tokens;
- batches recorded from the main job (`record_batches.py`): the naive side takes each padded batch of responses, ours
  its response tokens only, and in backward those whose gradient is not zero;
- `--step`: the peak of a whole update (a two-layer model of that width and vocabulary, AdamW in fp32), ours against naive.

Memory is the growth of the process's peak over what it held before (weights frozen, so that the weights' gradients,
which all sides need alike, are left out; on a GPU the allocator's peak). Sides that would not fit into the machine's
free memory are given by formula and marked so.

    pip install 'rlkd_nemo[bench]'
    python benchmarks/token_logprobs.py --out benchmarks/results/token_logprobs_cpu.json
    python benchmarks/token_logprobs.py --device cuda --hidden 4096 --dtype bf16 --tokens 8192 16384 32768 --out ...
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
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rlkd_nemo.engine.ranks import Ranks  # noqa: E402, F401  (first: it imports megatron the light way)

import psutil  # noqa: E402
import torch  # noqa: E402

from rlkd_nemo.engine.token_log_probs import token_log_probs  # noqa: E402

SIDES = ("ours", "naive", "trl selective", "trl chunked", "aligner")
# What each side holds at its peak, in multiples of tokens x vocabulary x 4 bytes; used only where it does not fit.
PEAK_COPIES = {"naive": 3, "trl selective": 3, "aligner": 6}
RECORDED = [Path(__file__).parent / f"recorded_{name}.json" for name in ("trrd", "grpo")]


def ours(hidden, weight, targets):
    """The engine's function."""
    return token_log_probs(hidden, weight, targets, vocab_size=weight.shape[0])[0]


def naive(hidden, weight, targets):
    """What a few lines of PyTorch do."""
    return torch.log_softmax((hidden @ weight.T).float(), -1).gather(-1, targets[:, None]).squeeze(-1)


def trl_selective(hidden, weight, targets):
    """TRL's function over one row of logits, as its trainers call it."""
    from trl.trainer.utils import selective_log_softmax

    return selective_log_softmax((hidden @ weight.T)[None], targets[None])[0]


def trl_chunked(hidden, weight, targets):
    """TRL's chunked function, entropy included, with the chunk its trainers use."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer import utils

    chunk = utils._CHUNKED_LOGPROB_CHUNK_SIZE
    return ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, chunk, None, 1.0, ("entropy",))[0]


class Aligner(torch.autograd.Function):
    """Vocabulary-parallel log-probs as NeMo-Aligner's, on one rank: the soft-max is kept for backward."""

    @staticmethod
    def forward(ctx, logits, targets):
        log_softmax = logits.float()
        log_softmax = log_softmax - log_softmax.amax(-1, keepdim=True)
        log_softmax = log_softmax - log_softmax.exp().sum(-1, keepdim=True).log()
        picked = log_softmax.gather(-1, targets[:, None]).squeeze(-1)
        ctx.save_for_backward(log_softmax.exp(), targets)
        return picked

    @staticmethod
    def backward(ctx, grad):
        softmax, targets = ctx.saved_tensors
        chosen = torch.nn.functional.one_hot(targets, num_classes=softmax.shape[-1])
        return chosen.float().sub_(softmax).mul_(grad[:, None]), None


def aligner(hidden, weight, targets):
    """NeMo-Aligner's scheme."""
    return Aligner.apply(hidden @ weight.T, targets)


FUNCTIONS: dict[str, Callable] = dict(zip(SIDES, (ours, naive, trl_selective, trl_chunked, aligner)))


class Problem:
    """Random hidden states, output matrix and targets; logits of standard deviation 2, as a trained model's."""

    def __init__(self, tokens: int, args: argparse.Namespace) -> None:
        self.device = torch.device(args.device)
        dtype = {"32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
        draw = torch.Generator().manual_seed(0)
        scale = 2.0 / args.hidden**0.5
        self.hidden = torch.randn(tokens, args.hidden, generator=draw).to(self.device, dtype)
        self.weight = (torch.randn(args.vocab, args.hidden, generator=draw) * scale).to(self.device, dtype)
        self.targets = torch.randint(0, args.vocab, (tokens,), generator=draw).to(self.device)
        self.pull = torch.randn(tokens, generator=draw).to(self.device)

    def run(self, side: str, rows=None, pull=None, *, train_weight: bool = True) -> tuple[torch.Tensor, float]:
        """Forward and backward of `side`: the log-probs' sum with `pull`, and seconds."""
        rows = slice(None) if rows is None else rows
        hidden = self.hidden[rows].detach().requires_grad_()
        weight = self.weight.detach().requires_grad_(train_weight)
        targets = self.targets[rows]
        pull = self.pull[rows] if pull is None else pull
        self._wait()
        started = time.perf_counter()
        log_probs = FUNCTIONS[side](hidden, weight, targets)
        log_probs.backward(pull.to(log_probs.dtype))
        self._wait()
        seconds = time.perf_counter() - started
        return torch.cat([log_probs.detach().double(), hidden.grad.double().flatten()[:4096]]), seconds

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def fits(side: str, tokens: int, args: argparse.Namespace) -> bool:
    """Whether `side` can run in the memory that is free now, with a tenth to spare."""
    if args.device == "cuda":
        return True
    wanted = PEAK_COPIES.get(side, 0) * tokens * args.vocab * 4 + 2 * args.vocab * args.hidden * 4
    return wanted < 0.9 * psutil.virtual_memory().available


def peak(side: str, tokens: int, args: argparse.Namespace) -> int:
    """Bytes that forward and backward of `side` add to a fresh process's peak."""
    command = [sys.executable, __file__, "--peak", side, "--tokens", str(tokens), "--vocab", str(args.vocab)]
    command += ["--hidden", str(args.hidden), "--device", args.device, "--dtype", args.dtype]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_peak(args: argparse.Namespace) -> None:
    """Child process of `peak`."""
    Problem(16, args).run(args.peak, train_weight=False)  # libraries load, buffers of theirs are made
    problem = Problem(args.tokens[0], args)
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        problem.run(args.peak, train_weight=False)
        print(torch.cuda.max_memory_allocated() - before)
        return
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark starts anew
    before = psutil.Process().memory_info().rss
    problem.run(args.peak, train_weight=False)
    print(high_water_mark() - before)


def high_water_mark() -> int:
    """Largest resident size of this process since the mark was reset, bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def all_live(args: argparse.Namespace) -> list[dict]:
    """Every token has a gradient."""
    table = []
    for tokens in args.tokens:
        sides = [side for side in args.sides if fits(side, tokens, args)]
        memory = {side: peak(side, tokens, args) for side in sides}
        problem = Problem(tokens, args)
        small = slice(0, 64)
        want = problem.run("naive", small)[0]
        for side in sides:  # the same numbers first, and a warm-up
            torch.testing.assert_close(problem.run(side, small)[0], want, rtol=args.rtol, atol=args.rtol)
        times: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(args.repeats):
            for side in sides if turn % 2 == 0 else reversed(sides):
                times[side].append(problem.run(side)[1])
                progress(f"{tokens} tokens, turn {turn + 1}/{args.repeats}, {side}: {times[side][-1]:.1f} s")
        for side in args.sides:
            row = {"tokens": tokens, "side": side}
            if side in sides:
                row |= {
                    "seconds": times[side],
                    "time_to_naive": ratio(times[side], times.get("naive")),
                    "peak_bytes": memory[side],
                    "memory_from": "measured",
                }
            else:
                row |= {"peak_bytes": PEAK_COPIES[side] * tokens * args.vocab * 4, "memory_from": "formula"}
            table.append(row)
        whole = next(row["peak_bytes"] for row in table if row["tokens"] == tokens and row["side"] == "naive")
        for row in table:
            if row["tokens"] == tokens:
                row["naive_memory_to_this"] = whole / row["peak_bytes"]
    return table


def ratio(times: list[float], others: list[float] | None) -> float | None:
    """Median over the turns of this side's time to the other's of the same turn."""
    if not others:
        return None
    return statistics.median(a / b for a, b in zip(times, others))


def recorded(args: argparse.Namespace) -> list[dict]:
    """Batches of the main job: which tokens exist and which are live is as recorded, hidden states are random."""
    table = []
    for path in RECORDED:
        record = json.loads(path.read_text())
        batches = [batch["rows"] for batch in record["batches"]]
        picked = batches[:: max(1, len(batches) // args.recorded)][: args.recorded]
        of_batch = []
        for number, rows in enumerate(picked):
            width = max(map(len, rows))
            problem = Problem(len(rows) * width, args)
            exists = torch.tensor([[t < len(row) for t in range(width)] for row in rows], device=problem.device)
            live = torch.tensor(
                [[t < len(row) and row[t] == "1" for t in range(width)] for row in rows], device=problem.device
            )
            pull = problem.pull * live.flatten()
            kept = exists.flatten().nonzero().squeeze(-1)
            times: dict[str, list[float]] = {"ours": [], "naive": [], "naive without padding": []}
            for _ in range(max(1, args.repeats - 1)):
                times["ours"].append(problem.run("ours", kept, pull[kept])[1])
                times["naive"].append(problem.run("naive", None, pull)[1])
                times["naive without padding"].append(problem.run("naive", kept, pull[kept])[1])
            of_batch.append(
                {
                    "rows": len(rows),
                    "padded_tokens": len(rows) * width,
                    "response_tokens": int(exists.sum()),
                    "live_tokens": int(live.sum()),
                    "seconds": times,
                }
            )
            progress(f"{path.stem} batch {number + 1}/{len(picked)}: {of_batch[-1]['live_tokens']} live")
        total = {
            side: sum(statistics.median(batch["seconds"][side]) for batch in of_batch)
            for side in of_batch[0]["seconds"]
        }
        table.append(
            {
                "objective": record["objective"],
                "batches": of_batch,
                "live_share_of_response_tokens": sum(b["live_tokens"] for b in of_batch)
                / sum(b["response_tokens"] for b in of_batch),
                "time_to_naive": total["ours"] / total["naive"],
                "time_to_naive_without_padding": total["ours"] / total["naive without padding"],
            }
        )
    return table


def whole_step(args: argparse.Namespace) -> list[dict]:
    """Peak of one update of a small model with the large vocabulary, ours and naive, each in a fresh process."""
    table = []
    for side in ("ours", "naive"):
        command = [sys.executable, __file__, "--step-of", side, "--tokens", str(args.step_tokens)]
        command += ["--vocab", str(args.vocab), "--hidden", str(args.hidden)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        table.append({"side": side, "tokens": args.step_tokens, **json.loads(out)})
        progress(f"whole step, {side}: peak {table[-1]['peak_bytes'] / 2**30:.2f} GiB")
    return table


def measure_step(args: argparse.Namespace) -> None:
    """Child process of `whole_step`: the second update of a real actor, so that optimizer states exist."""
    from rlkd_nemo.engine.ranks import init_ranks

    from rlkd_nemo.config.schema import Model
    from rlkd_nemo.engine import pipeline
    from rlkd_nemo.engine.actor import RLKDActor
    from rlkd_nemo.losses.batch import TokenLoss
    from rlkd_nemo.training.batch import SequenceBatch

    if args.step_of == "naive":
        pipeline.token_log_probs = lambda hidden, weight, targets, **how: (
            naive(hidden, weight, targets),
            torch.zeros(targets.shape),
        )
    rows, length = 8, args.tokens[0] // 8
    model = Model(
        num_layers=2, hidden_size=args.hidden, ffn_hidden_size=2 * args.hidden, num_attention_heads=8,
        num_query_groups=4, encoder_seq_length=length, tensor_model_parallel_size=1, micro_batch_size=rows,
    )  # fmt: skip
    actor = RLKDActor(model, args.vocab, init_ranks(1, 1), pad_id=0)
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, args.vocab, (rows, length), generator=draw)
    prompt = 1
    weights = [torch.full((length - prompt,), 1.0 / (rows * length)) for _ in range(rows)]
    batch = SequenceBatch(tokens[:, :prompt].tolist(), tokens[:, prompt:].tolist(), weights)

    def objective(log_probs, mask, fields):
        return TokenLoss(-log_probs, {})

    actor.prepare_for_training()
    actor.update(batch, objective)
    Path("/proc/self/clear_refs").write_text("5")
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    metrics = actor.update(batch, objective)
    seconds = time.perf_counter() - started
    print(
        json.dumps(
            {
                "held_before_bytes": before,
                "peak_bytes": high_water_mark(),
                "extra_bytes": high_water_mark() - before,
                "seconds": seconds,
                "loss": metrics["loss"],
            }
        )
    )


def progress(line: str) -> None:
    """One line on stderr, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def main() -> None:
    """Parse, measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--vocab", type=int, default=131072)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["32", "bf16"], default="32")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--recorded", type=int, default=6, help="recorded batches of each objective; 0: none")
    parser.add_argument("--step", action="store_true", help="also the peak of a whole update (CPU)")
    parser.add_argument("--step-tokens", type=int, default=4096)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--step-of", choices=["ours", "naive"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if args.peak:
        return measure_peak(args)
    if args.step_of:
        return measure_step(args)
    args.rtol = 1e-4 if args.dtype == "32" else 5e-2
    result = {
        "command": "python benchmarks/token_logprobs.py " + " ".join(sys.argv[1:]),
        "date": date.today().isoformat(),
        "hardware": hardware(args.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_at_start": os.getloadavg()[0],
        "vocab": args.vocab,
        "hidden": args.hidden,
        "dtype": args.dtype,
        "all_live": all_live(args),
    }
    if args.recorded:
        result["recorded"] = recorded(args)
    if args.step:
        result["whole_step"] = whole_step(args)
    show(result)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def hardware(device: str) -> str:
    """One line."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), {psutil.virtual_memory().total / 2**30:.0f} GiB"


def show(result: dict) -> None:
    """Tables on stdout."""
    print(f"{'tokens':>8} {'side':<15} {'seconds':>9} {'/ naive':>8} {'peak MiB':>9} {'naive is':>9}")
    for row in result["all_live"]:
        seconds = f"{statistics.median(row['seconds']):.2f}" if "seconds" in row else "-"
        relative = f"{row['time_to_naive']:.2f}" if row.get("time_to_naive") else "-"
        mark = "" if row["memory_from"] == "measured" else " (by formula)"
        print(
            f"{row['tokens']:>8} {row['side']:<15} {seconds:>9} {relative:>8} "
            f"{row['peak_bytes'] / 2**20:>9.0f} {row['naive_memory_to_this']:>8.1f}x{mark}"
        )
    for row in result.get("recorded", ()):
        print(
            f"recorded, {row['objective']}: {row['live_share_of_response_tokens']:.0%} of the response tokens live; "
            f"time {row['time_to_naive']:.2f} x naive ({row['time_to_naive_without_padding']:.2f} x naive without padding)"
        )
    for row in result.get("whole_step", ()):
        print(
            f"whole update of {row['tokens']} tokens, {row['side']}: {row['peak_bytes'] / 2**30:.2f} GiB at its peak, "
            f"{row['extra_bytes'] / 2**30:.2f} GiB more than before it, {row['seconds']:.0f} s"
        )


if __name__ == "__main__":
    main()
