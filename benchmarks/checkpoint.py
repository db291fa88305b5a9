"""What a checkpoint costs the training: synchronous against asynchronous, and what its checksums cost.

    python benchmarks/checkpoint.py [--hidden 384] [--repeats 5] [--json FILE]

Two tensor-parallel ranks train a model of random weights and save weights, AdamW's moments and all else a resume needs
into a temporary folder. `stall` is the time in which the training thread does nothing else; an asynchronous save is
collected before the next one begins. Medians; the machine is named in the output.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path


def main(arguments: argparse.Namespace) -> None:
    """One rank."""
    from rlkd_nemo.engine.ranks import close_ranks, init_ranks  # isort: skip

    import torch
    import torch.distributed as dist

    from rlkd_nemo.config.schema import Model
    from rlkd_nemo.engine.actor import RLKDActor
    from rlkd_nemo.engine.state import integrity
    from rlkd_nemo.engine.state.background import Background
    from rlkd_nemo.engine.state.checkpoint import begin_save, save_checkpoint
    from rlkd_nemo.training.batch import SequenceBatch
    from rlkd_nemo.training.sft import negative_log_likelihood

    ranks = init_ranks(2, 1)
    hidden = arguments.hidden
    model = Model(
        num_layers=4, hidden_size=hidden, ffn_hidden_size=3 * hidden, num_attention_heads=6, num_query_groups=2,
        tensor_model_parallel_size=2, encoder_seq_length=64,
    )  # fmt: skip
    actor = RLKDActor(model, 1000, ranks, pad_id=0)
    batch = SequenceBatch([[1, 2, 3]] * 4, [[4] * 40] * 4, [torch.full((40,), 1 / 160)] * 4)
    folder = [tempfile.mkdtemp(dir=arguments.directory)]
    dist.broadcast_object_list(folder)
    directory, background = Path(folder[0]), Background()
    seconds: dict[str, list[float]] = {
        name: [] for name in ("sync_stall", "async_stall", "async_total", "checksums", "step_alone", "step_during_save")
    }

    def timed(name: str, action) -> None:
        dist.barrier()
        started = time.perf_counter()
        action()
        seconds[name].append(time.perf_counter() - started)

    def step() -> None:
        actor.prepare_for_training()
        actor.update(batch, negative_log_likelihood)

    step()
    for _ in range(arguments.repeats):
        timed("step_alone", step)
        timed("sync_stall", lambda: save_checkpoint(directory, 1, actor, extra={}, tokenizer_pieces=["x"]))
        timed("checksums", lambda: integrity.fingerprints(directory / "step-000001", "checksums"))
        timed("async_stall", lambda: begin_save(background, directory, 2, actor, extra={}, tokenizer_pieces=["x"]))
        timed("step_during_save", step)
        background.wait()
        seconds["async_total"].append(background.spent_s)
    size = sum(path.stat().st_size for path in (directory / "step-000001").iterdir())
    if ranks.is_main:
        result = {
            "command": f"python benchmarks/checkpoint.py --hidden {hidden} --repeats {arguments.repeats}",
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{os.cpu_count()} cores {platform.machine()}, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}",
            "checkpoint_mb": round(size / 1e6, 1),
            **{f"{name}_s": round(statistics.median(values), 4) for name, values in seconds.items()},
        }
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n")
        import shutil

        shutil.rmtree(directory)
    close_ranks()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--directory", help="where the checkpoints are written (default: the system's temporary folder)"
    )
    parser.add_argument("--json", help="also write the result there")
    if "RANK" in os.environ:
        main(parser.parse_args())
    else:
        parser.parse_args()
        from rlkd_nemo.launch.local import run_ranks

        sys.exit(run_ranks(Path(__file__).resolve(), sys.argv[1:], 2))
