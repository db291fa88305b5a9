"""Rank script: everything about checkpoints that needs two ranks, in one launch.

Usage: checkpoint_ranks.py DIRECTORY RESULTS.json; the main rank writes what was seen, the test judges it.
"""

import json
import logging
import os
import pathlib
import random
import resource
import shutil
import sys
import threading
import time
from types import SimpleNamespace

from rlkd_nemo.engine.ranks import close_ranks, init_ranks, rng_state, seed_everything

import numpy as np
import torch
import torch.distributed as dist

from rlkd_nemo.config.load import load as load_config
from rlkd_nemo.config.schema import Model, Optim, Schedule
from rlkd_nemo.engine.actor import RLKDActor
from rlkd_nemo.engine.model.build import build_model
from rlkd_nemo.engine.scoring import sequence_log_probs
from rlkd_nemo.engine.state import checkpoint, storage
from rlkd_nemo.engine.state.background import Background
from rlkd_nemo.errors import CheckpointError
from rlkd_nemo.run_directory import RunDirectory
from rlkd_nemo.training.batch import SequenceBatch
from rlkd_nemo.training.sft import negative_log_likelihood

VOCAB = 19  # padded to 24 with one tensor-parallel rank, to 32 with two
PIECES = [f"<{i}>" for i in range(VOCAB)]
PROMPTS = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
RESPONSES = [[2, 3, 18], [5, 1], [9, 8, 7, 6, 5]]
SEEN: dict = {}


def settings(tp=1, pp=1, **changes):
    optim = Optim(lr=1e-2, weight_decay=0.1, sched=Schedule(name="cosine", warmup_steps=2))
    return Model(
        **{
            "num_layers": 4, "hidden_size": 32, "ffn_hidden_size": 48, "encoder_seq_length": 32,
            "tensor_model_parallel_size": tp, "pipeline_model_parallel_size": pp, "optim": optim, **changes,
        }
    )  # fmt: skip


def new_actor(ranks, tp=1, pp=1, seed=0, **options):
    seed_everything(seed)
    model = options.pop("model", None) or settings(tp, pp)
    return RLKDActor(model, options.pop("vocab", VOCAB), ranks, **{"pad_id": 0, "total_updates": 12, **options})


def batch(index):
    """A batch that differs from update to update."""
    draw = torch.Generator().manual_seed(index)
    prompts = [torch.randint(0, VOCAB, (3,), generator=draw).tolist() for _ in range(4)]
    responses = [torch.randint(0, VOCAB, (2 + i,), generator=draw).tolist() for i in range(4)]
    total = sum(map(len, responses))
    return SequenceBatch(prompts, responses, [torch.full((len(r),), 1 / total) for r in responses])


def train(actor, count):
    """[loss, gradient norm, learning rate] of the next updates."""
    actor.prepare_for_training()
    numbers = []
    for _ in range(count):
        metrics = actor.update(batch(actor.updates), negative_log_likelihood)
        numbers.append([metrics["loss"], metrics["grad_norm"], metrics["learning_rate"]])
    return numbers


def draws():
    """For each rank, one number of each generator; Megatron's tracker as the sum of its state."""
    tracker = sum(float(state.double().sum()) for state in rng_state()["tracker"].values())
    mine = [float(torch.rand(())), float(np.random.rand()), random.random(), tracker]
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    return every


def log_probs(model, ranks):
    rows = sequence_log_probs(model, ranks, PROMPTS, RESPONSES, temperature=1.0, pad_id=0)[0]
    return torch.cat(rows).tolist()


def refused(name, function, *args, **options):
    """Record the message, which must be the same on every rank."""
    try:
        function(*args, **options)
        message = "nothing was raised"
    except CheckpointError as err:
        message = str(err)
    messages = [None] * dist.get_world_size()
    dist.all_gather_object(messages, message)
    SEEN[name] = message if len(set(messages)) == 1 else f"ranks differ: {messages}"


def save(directory, step, actor, **options):
    return checkpoint.save_checkpoint(
        directory, step, actor, **{"extra": {"step": step}, "tokenizer_pieces": PIECES, **options}
    )


class FileSizeLimit:
    """The kernel refuses files above `size` bytes on one rank: a write fails as it does on a full disk."""

    def __init__(self, rank, size):
        self.active, self.size = dist.get_rank() == rank, size

    def __enter__(self):
        self.old = resource.getrlimit(resource.RLIMIT_FSIZE)
        if self.active:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.old[1]))

    def __exit__(self, *exc):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.old)


class Warnings(logging.Handler):
    """Collects what the checkpoint module warns of."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


def tensor_parallel(root, warned):
    ranks = init_ranks(2, 1)
    actor = new_actor(ranks, tp=2)
    train(actor, 3)
    torch.rand(dist.get_rank()), np.random.rand(dist.get_rank())  # the ranks' generators part
    started = time.perf_counter()
    path = save(root, 3, actor, extra={"step": 3, "position": 24, "best": 0.1 + 0.2}, metric=0.5)
    SEEN["save_s"] = time.perf_counter() - started
    SEEN["leftover"] = [m for m in warned.messages if "interrupted" in m]
    SEEN["log_probs"] = log_probs(actor.bare_model, ranks)
    SEEN["drawn"] = draws()
    SEEN["uninterrupted"] = train(actor, 3)

    resumed = new_actor(ranks, tp=2, seed=99)
    SEEN["fresh_log_probs"] = log_probs(resumed.bare_model, ranks)
    warned.messages.clear()
    started = time.perf_counter()
    SEEN["extra"] = checkpoint.load_checkpoint(path, resumed, tokenizer_pieces=PIECES)
    SEEN["load_s"] = time.perf_counter() - started
    SEEN["quiet"] = list(warned.messages)
    SEEN["drawn_again"] = draws()
    SEEN["updates"] = resumed.updates
    SEEN["resumed"] = train(resumed, 3)

    weights = new_actor(ranks, tp=2, seed=99)
    checkpoint.load_checkpoint(path, weights, weights_only=True)
    SEEN["weights_only"] = [log_probs(weights.bare_model, ranks), weights.updates, bool(weights.optimizer.state)]

    changed = settings(2)
    changed.optim.lr, changed.optim.betas = 5e-3, [0.8, 0.9]
    other = new_actor(ranks, model=changed)
    warned.messages.clear()
    checkpoint.load_checkpoint(path, other)
    SEEN["changed_warning"] = list(warned.messages)
    SEEN["changed_lr"] = train(other, 1)[0][2]
    SEEN["changed_betas"] = list(other.optimizer.param_groups[0]["betas"])

    SEEN["meta"] = checkpoint.read_meta(path)
    errors(root, path, actor, ranks)
    full_disk(root, actor)
    falls_back(root / "run", ranks)
    in_background(root / "background", ranks)
    untrained(root / "untrained", ranks)
    half_precision(root / "bf16", path, ranks)
    return path


def errors(root, path, actor, ranks):
    load = checkpoint.load_checkpoint
    refused("missing", load, root / "step-000007", actor)
    refused("missing_directory", load, root / "nowhere" / "step-000007", actor)
    refused("directory_of_checkpoints", load, root, actor)
    wider = new_actor(ranks, model=settings(2, ffn_hidden_size=64, rotary_base=5e5))
    refused("architecture", load, path, wider)
    refused("vocabulary_size", load, path, new_actor(ranks, tp=2, vocab=23))
    refused("vocabulary_pieces", load, path, actor, tokenizer_pieces=PIECES[::-1])
    damaged = root.parent / "damaged" / path.name
    if dist.get_rank() == 0:
        shutil.copytree(path, damaged)
        os.truncate(damaged / "__1_0.distcp", 100)
    dist.barrier()
    refused("damaged", load, damaged, new_actor(ranks, tp=2))
    refused("precision", load, path, new_actor(ranks, tp=2, precision="bf16"))


def falls_back(root, ranks):
    """A run whose newest checkpoints are damaged, each in its own way; the ranks' answers must agree."""
    cfg = load_config("rlkd_demo")
    tokens = SimpleNamespace(pieces=lambda: PIECES)
    run = RunDirectory(root, cfg, ranks, tokens, total_steps=9, description="test")
    actor = new_actor(ranks, tp=2)
    damages = {
        5: lambda path: os.truncate(path / "__1_0.distcp", 100),
        6: lambda path: (path / "__0_0.distcp").unlink(),
        7: lambda path: (path / "meta.json").write_text('{"format_version": 1'),
        8: lambda path: (path / "meta.json").unlink(),
        9: lambda path: (path / "common.pt").write_bytes((path / "common.pt").read_bytes()[:-1] + b"x"),
    }
    for step in (4, *damages):
        path = save(run.checkpoints, step, actor, extra={"step": step})
        if dist.get_rank() == 0 and step in damages:
            damages[step](path)
        dist.barrier()
    refused("named_and_damaged", checkpoint.load_checkpoint, path, actor)
    SEEN["fell_back_to"] = run.resume(actor)
    if dist.get_rank() == 0:
        SEEN["after_fall_back"] = sorted(p.name for p in run.checkpoints.iterdir())
        SEEN["resumes"] = [json.loads(line) for line in (root / "resumes.jsonl").read_text().splitlines()]
        (run.checkpoints / "step-000004" / "__1_0.distcp").write_bytes(b"")
    dist.barrier()
    refused("none_is_whole", run.resume, actor)
    refused("still_none", run.resume, actor)


def in_background(root, ranks):
    """An asynchronous save while training goes on, against a synchronous one of the same state; and a failing one."""
    actor = new_actor(ranks, tp=2)
    train(actor, 2)
    told = checkpoint.read_meta(save(root / "sync", 2, actor))
    background = Background()
    options = {"extra": {"step": 2}, "tokenizer_pieces": PIECES}
    hold, release = storage.checkpoint.save, threading.Event()

    def late(*args, **kwargs):
        assert release.wait(600)
        return hold(*args, **kwargs)

    storage.checkpoint.save = late
    checkpoint.begin_save(background, root / "async", 2, actor, **options)
    train(actor, 1)  # its weights are no longer what is being written
    SEEN["while_writing"] = [background.busy, background.done(), sorted(p.name for p in (root / "async").iterdir())]
    release.set()
    background.wait()
    storage.checkpoint.save = hold
    written = checkpoint.read_meta(root / "async" / "step-000002")
    SEEN["sync_and_async"] = [{**m["files"], ".metadata": 0} for m in (told, written)]
    SEEN["after_writing"] = [background.busy, sorted(p.name for p in (root / "async").iterdir())]
    with FileSizeLimit(rank=1, size=20_000):
        checkpoint.begin_save(background, root / "async", 3, actor, **options)
        refused("background_failed", background.wait)
    dist.barrier()
    SEEN["after_failure"] = [background.busy, sorted(p.name for p in (root / "async").iterdir())]


def full_disk(root, actor):
    before = log_probs(actor.bare_model, actor.ranks)
    with FileSizeLimit(rank=1, size=20_000):
        refused("full_on_worker", save, root, 4, actor)
    with FileSizeLimit(rank=0, size=500):
        refused("full_on_main", save, root, 4, actor)
    with FileSizeLimit(rank=0, size=1_000_000):  # the last file of all
        refused("full_at_the_end", save, root, 4, actor, extra={"too long": "x" * 2_000_000})
    refused("not_a_directory", save, pathlib.Path("/dev/null") / "checkpoints", 4, actor)
    dist.barrier()
    SEEN["after_full_disk"] = sorted(path.name for path in root.iterdir())
    SEEN["unharmed"] = log_probs(actor.bare_model, actor.ranks) == before


def untrained(root, ranks):
    """Never stepped; no optimizer; a bare model."""
    actor = new_actor(ranks, tp=2)
    path = save(root, 0, actor)
    SEEN["before_first_update"] = train(actor, 2)
    resumed = new_actor(ranks, tp=2, seed=99)
    checkpoint.load_checkpoint(path, resumed)
    SEEN["resumed_first_update"] = train(resumed, 2)
    frozen = new_actor(ranks, tp=2, seed=5, trainable=False)
    weights = save(root, 1, frozen)
    SEEN["frozen_content"] = checkpoint.read_meta(weights)["content"]
    refused("weights_as_training", checkpoint.load_checkpoint, weights, resumed)
    bare = build_model(checkpoint.model_from_checkpoint(weights, settings(2, num_layers=1)), VOCAB, ranks)
    checkpoint.load_checkpoint(weights, bare)
    SEEN["bare"] = [log_probs(bare, ranks), log_probs(frozen.bare_model, ranks)]
    save(root, 1, bare, metric=1.0)  # replaces the checkpoint of that step
    SEEN["replaced"] = [sorted(p.name for p in root.iterdir()), checkpoint.read_meta(weights)["metric"]]


def half_precision(root, fp32_path, ranks):
    """fp32 weights into a bf16 model, then a resume with its fp32 master weights; given gradients, no forward."""

    def push(actor):
        for _ in range(3):
            for index, parameter in enumerate(actor.model.parameters()):
                draw = torch.Generator().manual_seed(index)
                parameter.main_grad.copy_(torch.randn(parameter.shape, generator=draw))
            actor.scheduler.step(1)
            actor.optimizer.step()
        masters = [master for chained in actor.optimizer.chained_optimizers for master in chained.get_parameters()]
        return torch.cat([parameter.detach().float().flatten() for parameter in [*actor.model.parameters(), *masters]])

    whole, half = new_actor(ranks, tp=2, seed=98), new_actor(ranks, tp=2, seed=99, precision="bf16")
    for actor in (whole, half):
        checkpoint.load_checkpoint(fp32_path, actor, weights_only=True)
    pairs = zip(whole.hidden_model.parameters(), half.hidden_model.parameters())
    SEEN["bf16_weights"] = all(torch.equal(a.bfloat16(), b) for a, b in pairs)
    push(half)
    path = save(root, 3, half)
    expected = push(half)
    resumed = new_actor(ranks, tp=2, seed=99, precision="bf16")
    checkpoint.load_checkpoint(path, resumed)
    SEEN["bf16_resume_gap"] = float((push(resumed) - expected).abs().max())


def other_layouts(root, path, warned):
    ranks = init_ranks(1, 2)
    actor = new_actor(ranks, pp=2, seed=99)
    warned.messages.clear()
    checkpoint.load_checkpoint(path, actor)
    SEEN["layout_warning"] = list(warned.messages)
    SEEN["pipeline"] = [log_probs(actor.bare_model, ranks), train(actor, 3)]

    ranks = init_ranks(1, 1)
    actor = new_actor(ranks, seed=99)
    checkpoint.load_checkpoint(path, actor)
    SEEN["data"] = [log_probs(actor.bare_model, ranks), train(actor, 3)]
    saved = save(root / "data", 6, actor)
    expected = log_probs(actor.bare_model, ranks)
    SEEN["data_uninterrupted"] = train(actor, 3)
    actor = new_actor(ranks, seed=98)
    checkpoint.load_checkpoint(saved, actor)
    SEEN["data_resumed"] = train(actor, 3)

    ranks = init_ranks(2, 1)
    actor = new_actor(ranks, tp=2, seed=99, trainable=False)
    checkpoint.load_checkpoint(saved, actor)
    SEEN["data_to_tensor"] = [log_probs(actor.bare_model, ranks), expected]


def main(root, results):
    warned = Warnings()
    logging.getLogger("rlkd_nemo.engine.state.checkpoint").addHandler(warned)
    path = tensor_parallel(root, warned)
    other_layouts(root, path, warned)
    if dist.get_rank() == 0:
        results.write_text(json.dumps(SEEN))
    close_ranks()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
