"""Rank script: a checkpoint and an export of two context-parallel ranks. Usage: context_ranks.py DIRECTORY."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from rlkd_nemo.engine.ranks import close_ranks, init_ranks

import torch
from checkpoint_ranks import PIECES, PROMPTS, RESPONSES, VOCAB, batch, new_actor, settings

from rlkd_nemo.engine.hugging_face.load import load_hugging_face
from rlkd_nemo.engine.hugging_face.save import save_hugging_face
from rlkd_nemo.engine.model.build import build_model
from rlkd_nemo.engine.scoring import sequence_log_probs
from rlkd_nemo.engine.state import checkpoint
from rlkd_nemo.training.sft import negative_log_likelihood


def train(actor, first):
    seen = []
    for index in range(first, first + 3):
        metrics = actor.update(batch(index), negative_log_likelihood)
        seen.append([metrics["loss"], metrics["grad_norm"], metrics["learning_rate"]])
    return seen


def log_probs(model, ranks):
    return torch.cat(sequence_log_probs(model, ranks, PROMPTS, RESPONSES, temperature=1.0, pad_id=0)[0])


def main(root):
    ranks = init_ranks(1, 1, context_parallel_size=2)
    model = settings(context_parallel_size=2, packed_sequences=True)
    # Moments cut over the context-parallel ranks too, sent while the backward pass runs.
    model.optim.use_distributed_optimizer = model.optim.overlap_grad_sync = True
    model.optim.bucket_size = 5000
    actor = new_actor(ranks, model=model)
    train(actor, 0)
    path = checkpoint.save_checkpoint(root, 3, actor, extra={}, tokenizer_pieces=PIECES)
    want = log_probs(actor.bare_model, ranks)
    exported = save_hugging_face(actor, root / "hugging_face")
    going_on = train(actor, 3)
    resumed = new_actor(ranks, model=model, seed=99)
    checkpoint.load_checkpoint(path, resumed, tokenizer_pieces=PIECES)
    assert train(resumed, 3) == going_on, "a resume differs from the uninterrupted run"

    assert checkpoint.read_meta(path)["layout"] == {"tensor": 1, "pipeline": 1, "data": 1, "context": 2}
    ranks = init_ranks(2, 1)
    for source, load in ((path, checkpoint.load_checkpoint), (exported, load_hugging_face)):
        other = build_model(settings(tp=2), VOCAB, ranks)
        load(source, other)
        gap = float((log_probs(other, ranks) - want).abs().max())
        assert gap < 1e-5, f"{source} under tensor parallelism: log-probs differ by {gap}"
    if ranks.is_main:
        print("CONTEXT OK", flush=True)
    close_ranks()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
