"""Embedded rollouts against `transformers.generate`, the same weights, prompts and response lengths.

Two of our ranks, one thread each and each decoding its share, against one transformers process with two threads, in
turns, on the same two cores. `equal`: every row ends at the limit. `ragged`: row i ends after a forced number of
tokens, the same on both sides, drawn log-normal (median 20 tokens, sigma 0.6) and cut at the limit: the long right tail
of reasoning, where most rows are done at a third of the longest. transformers keeps a finished row in the batch until
all have ended. Our side also computes log-probs and exchanges the responses between the ranks; the other does neither.

    python benchmarks/rollout.py --out benchmarks/results/rollout.json

Checks first that both sides choose the same greedy tokens. `ratio` is of medians, `best` of the fastest turns of each
side, which other work on the machine disturbs least (two threads that wait for one another suffer most).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

BATCH, PROMPT, NEW, VOCAB = 64, 32, 64, 64
MODEL = {
    "num_layers": 4, "hidden_size": 128, "ffn_hidden_size": 256, "num_attention_heads": 4, "num_query_groups": 2,
    "encoder_seq_length": PROMPT + NEW, "init_method_std": 0.15, "tensor_model_parallel_size": 1,
}  # fmt: skip
CASES = [(lengths, how) for lengths in ("ragged", "equal") for how in ("sampled", "greedy")]


def workload() -> tuple[list[list[int]], list[int]]:
    """Prompts and the ragged response lengths, from a fixed seed."""
    draw = random.Random(5)
    prompts = [[draw.randrange(VOCAB) for _ in range(PROMPT)] for _ in range(BATCH)]
    lengths = [min(NEW, max(1, round(draw.lognormvariate(2.9957, 0.6)))) for _ in range(BATCH)]
    return prompts, lengths


def limits(lengths: str) -> list[int]:
    """Tokens after which each row ends."""
    return workload()[1] if lengths == "ragged" else [NEW] * BATCH


def rank(args: argparse.Namespace) -> None:
    """Our side, on each of two ranks; rank 0 also drives the other side and reports."""
    from rlkd_nemo.engine.ranks import close_ranks, init_ranks

    import torch
    import torch.distributed as dist

    from rlkd_nemo.config.schema import Model
    from rlkd_nemo.engine.generate.engine import EmbeddedRollout
    from rlkd_nemo.engine.model.build import build_model
    from rlkd_nemo.types import Problem

    class Digits:
        """Prompts are written as numbers; nothing ends a response but its forced length."""

        vocab_size, eos_id, pad_id = VOCAB, -1, 0

        def encode(self, text: str) -> list[int]:
            return [int(part) for part in text.split()]

        def decode(self, ids) -> str:
            return " ".join(map(str, ids))

    class Forced(EmbeddedRollout):
        """Row i ends after `ends[i]` tokens."""

        ends: Sequence[int] = ()

        def limit(self, problem: Problem, sample: int, max_new_tokens: int) -> int:
            return self.ends[int(problem.id)]

    load = os.getloadavg()[0]
    ranks = init_ranks(1, 1)
    settings = Model(**MODEL)
    model = build_model(settings, VOCAB, ranks)
    engine = Forced(model, ranks, Digits(), batch_size=BATCH)
    started = time.perf_counter()
    engine.refit(0)
    first = time.perf_counter() - started
    started = time.perf_counter()
    engine.refit(0)
    refit = time.perf_counter() - started
    prompts, _ = workload()
    problems = [Problem(str(i), " ".join(map(str, prompt)), "") for i, prompt in enumerate(prompts)]

    def ours(case: tuple[str, str]) -> tuple[float, list[list[int]]]:
        engine.ends = limits(case[0])
        temperature = 0.0 if case[1] == "greedy" else 1.0
        dist.barrier()
        started = time.perf_counter()
        out = engine.generate(problems, 1, stream=("bench",), temperature=temperature, max_new_tokens=NEW)
        return time.perf_counter() - started, [rollout.response_ids for rollout in out]

    other = Other(settings, engine.collector.weights, args.threads) if ranks.is_main else None
    times: dict[tuple[str, str], tuple[list[float], list[float]]] = {case: ([], []) for case in CASES}
    same = {}
    for case in CASES:  # warm both sides and compare the tokens
        for _ in range(2):
            _, tokens = ours(case)
            if other:
                _, theirs = other.ask(case)
                same[case] = sum(a == b for a, b in zip(tokens, theirs))
        if other and case[1] == "greedy" and same[case] != BATCH:
            raise SystemExit(f"{case}: greedy tokens agree on {same[case]} rows of {BATCH}; nothing to compare")
    for _ in range(args.repeats):
        for case in CASES:
            seconds, _ = ours(case)
            times[case][0].append(seconds)
            if other:
                times[case][1].append(other.ask(case)[0])
    if other:
        other.close()
        args.load = load
        report(args, times, torch.__version__, (first, refit))
    dist.barrier()
    close_ranks()


class Other:
    """The transformers process, driven over its standard input and output."""

    def __init__(self, settings, weights, threads: int) -> None:
        import torch

        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "weights.pt"
        torch.save((settings, llama_state(settings, weights)), path)
        environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        environment["OMP_NUM_THREADS"] = str(threads)
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--transformers", str(path)],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, case: tuple[str, str]) -> tuple[float, list[list[int]]]:
        """Seconds and tokens of one generation."""
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        seconds, tokens = json.loads(self.process.stdout.readline())
        return seconds, tokens

    def close(self) -> None:
        """End it."""
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.folder.cleanup()


def llama_state(settings, weights) -> dict:
    """The decoder's weights under the names of transformers' Llama."""
    import torch

    dim = weights.head_dim
    back = torch.arange(dim).view(-1, 2).T.reshape(-1)  # neighbours back to half-split pairs
    state = {
        "model.embed_tokens.weight": weights.embedding,
        "model.norm.weight": weights.final_norm,
        "lm_head.weight": weights.output.T,
    }
    for number, layer in enumerate(weights.layers):
        heads = layer.qkv.T.view(weights.num_groups, -1, dim, settings.hidden_size)
        gate, up = layer.fc1.T.chunk(2)
        state |= {
            f"model.layers.{number}.{name}.weight": value
            for name, value in {
                "input_layernorm": layer.input_norm,
                "self_attn.q_proj": heads[:, :-2, back].flatten(0, 2),
                "self_attn.k_proj": heads[:, -2, back].flatten(0, 1),
                "self_attn.v_proj": heads[:, -1].flatten(0, 1),
                "self_attn.o_proj": layer.proj.T,
                "post_attention_layernorm": layer.pre_mlp_norm,
                "mlp.gate_proj": gate,
                "mlp.up_proj": up,
                "mlp.down_proj": layer.fc2.T,
            }.items()
        }
    return {name: value.contiguous().clone() for name, value in state.items()}


def transformers_side(path: str) -> None:
    """The other side: answers each case read from standard input with seconds and tokens."""
    import torch
    import transformers

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    settings, state = torch.load(path, weights_only=False)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=settings.hidden_size, intermediate_size=settings.ffn_hidden_size,
        num_hidden_layers=settings.num_layers, num_attention_heads=settings.num_attention_heads,
        num_key_value_heads=settings.num_query_groups, rms_norm_eps=settings.layernorm_epsilon,
        max_position_embeddings=settings.encoder_seq_length, rope_theta=settings.rotary_base,
        tie_word_embeddings=False, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    model.load_state_dict(state)
    prompts = torch.tensor(workload()[0])

    class Ends(transformers.StoppingCriteria):
        def __init__(self, ends: list[int]) -> None:
            self.columns = torch.tensor(ends) + PROMPT

        def __call__(self, input_ids, scores, **kwargs):
            return input_ids.shape[1] >= self.columns

    for line in sys.stdin:
        lengths, how = json.loads(line)
        ends = limits(lengths)
        torch.manual_seed(0)
        sampling = (
            {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
            if how == "sampled"
            else {"do_sample": False}
        )
        criteria = transformers.StoppingCriteriaList([Ends(ends)] if lengths == "ragged" else [])
        started = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=NEW,
                stopping_criteria=criteria,
                **sampling,
            )
        seconds = time.perf_counter() - started
        tokens = [row[PROMPT : PROMPT + end].tolist() for row, end in zip(out, ends)]
        print(json.dumps([seconds, tokens]), flush=True)


def report(args: argparse.Namespace, times: dict, torch_version: str, refit: tuple[float, float]) -> None:
    """Print the table, write the JSON."""
    import transformers

    rows = []
    for (lengths, how), (ours, theirs) in times.items():
        tokens = sum(limits(lengths))
        ratios = [b / a for a, b in zip(ours, theirs)]
        rows.append(
            {
                "lengths": lengths,
                "tokens_from": how,
                "response_tokens": tokens,
                "ours_s": ours,
                "transformers_s": theirs,
                "ours_tokens_per_s": tokens / statistics.median(ours),
                "transformers_tokens_per_s": tokens / statistics.median(theirs),
                "ratio_of_medians": statistics.median(theirs) / statistics.median(ours),
                "ratio_of_best": min(theirs) / min(ours),
                "ratio_in_turn_min": min(ratios),
                "ratio_in_turn_max": max(ratios),
            }
        )
    if args.load > 1:
        print(
            f"Load average {args.load:.1f} before the start: other work shared the cores; only `best` says something.\n"
        )
    print(f"refit: first {refit[0] * 1e3:.1f} ms, then {refit[1] * 1e3:.1f} ms\n")
    print(
        "| lengths | tokens | response tokens | ours, tokens/s | transformers, tokens/s | ratio (range in turn) | best |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['lengths']} | {row['tokens_from']} | {row['response_tokens']} | {row['ours_tokens_per_s']:.0f} | "
            f"{row['transformers_tokens_per_s']:.0f} | {row['ratio_of_medians']:.2f} "
            f"({row['ratio_in_turn_min']:.2f} to {row['ratio_in_turn_max']:.2f}) | {row['ratio_of_best']:.2f} |"
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        meta = {
            "date": time.strftime("%Y-%m-%d"),
            "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
            "command": " ".join(["benchmarks/rollout.py", *(arg for arg in sys.argv[1:] if arg != "--rank")]),
            "transformers_threads": args.threads,
            "load_average_before": args.load,
            "torch": torch_version,
            "transformers": transformers.__version__,
            "model": MODEL,
            "batch": BATCH,
            "prompt_tokens": PROMPT,
            "limit_tokens": NEW,
            "ragged_lengths": workload()[1],
            "refit_s": refit,
        }
        args.out.write_text(json.dumps({**meta, "rows": rows}, indent=1) + "\n")


def main() -> int:
    """Start the two ranks and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2, help="of the transformers process")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--transformers", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.transformers:
        transformers_side(args.transformers)
    elif args.rank:
        rank(args)
    else:
        from rlkd_nemo.launch.local import run_ranks

        os.environ["OMP_NUM_THREADS"] = "1"
        return run_ranks(__file__, ["--rank", *sys.argv[1:]], 2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
