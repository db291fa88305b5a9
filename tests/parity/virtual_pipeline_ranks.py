"""Two ranks, PP2 x VPP2 against DP2: loss, gradients, checkpoints, export, sampler's weights. Usage: ... DIRECTORY."""

import dataclasses
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from rlkd_nemo.engine.ranks import close_ranks, init_ranks

import torch
import torch.distributed as dist
from known_weights import fill

from rlkd_nemo.config.schema import Model, Optim
from rlkd_nemo.engine.actor import RLKDActor
from rlkd_nemo.engine.generate.collect import WeightCollector
from rlkd_nemo.engine.hugging_face.load import load_hugging_face
from rlkd_nemo.engine.hugging_face.save import save_hugging_face
from rlkd_nemo.engine.model.build import build_model
from rlkd_nemo.engine.state.checkpoint import load_checkpoint, save_checkpoint
from rlkd_nemo.losses.batch import TokenLoss
from rlkd_nemo.training.batch import SequenceBatch

VOCAB = 29
PIECES = [str(i) for i in range(VOCAB)]
PLAIN = Model(
    num_layers=8, hidden_size=32, ffn_hidden_size=48, num_attention_heads=4, num_query_groups=2, encoder_seq_length=64,
    tensor_model_parallel_size=1, micro_batch_size=2, forward_micro_batch_size=3, optim=Optim(lr=1e-2),
)  # fmt: skip
PIPELINE = dataclasses.replace(PLAIN, pipeline_model_parallel_size=2)
VIRTUAL = dataclasses.replace(PIPELINE, virtual_pipeline_model_parallel_size=2)


def rows():
    """Ten ragged rows: five micro-batches of two, so that the schedule has to be filled up."""
    draw = torch.Generator().manual_seed(3)
    prompts = [torch.randint(0, VOCAB, (2 + row % 4,), generator=draw).tolist() for row in range(10)]
    responses = [torch.randint(0, VOCAB, (3 + 5 * row % 17,), generator=draw).tolist() for row in range(10)]
    return SequenceBatch(prompts, responses, [torch.rand(len(row), generator=draw) / 100 for row in responses])


def objective(log_probs, mask, fields):
    return TokenLoss(-log_probs, {})


def actor_of(settings, ranks, *, tied=False, precision="32"):
    settings = dataclasses.replace(settings, share_embeddings_and_output_weights=tied)
    actor = RLKDActor(settings, VOCAB, ranks, pad_id=0, precision=precision)
    fill(actor.bare_model, ranks)
    actor.optimizer.reload_model_params()
    return actor


def measure(actor, batch):
    """Loss, and from every rank its gradients and the log-probs."""
    actor.prepare_for_training_step()
    loss, _ = actor.get_loss_and_metrics(batch, objective)
    gradients = {name: p.main_grad.clone() for name, p in actor.hidden_model.named_in_whole()}
    everywhere = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, gradients)
    log_probs, _ = actor.get_inference_log_probs(batch.prompts, batch.responses, temperature=0.8)
    return loss, {name: value for part in everywhere for name, value in part.items()}, torch.cat(log_probs)


def gaps(got, want):
    """Largest differences: loss and gradients relative, log-probs in nats."""
    # A tied model on several stages has a second copy of the embedding.
    assert got[1].keys() - want[1].keys() <= {"output_layer.weight"} and want[1].keys() <= got[1].keys()
    gradient = max(float((got[1][n] - value).abs().max() / value.abs().max()) for n, value in want[1].items())
    return [abs(got[0] - want[0]) / abs(want[0]), gradient, float((got[2] - want[2]).abs().max())]


def log_probs(actor, batch):
    return torch.cat(actor.get_inference_log_probs(batch.prompts, batch.responses, temperature=1.0)[0])


def train(actor, batch, updates):
    return [[m["loss"], m["grad_norm"]] for m in (actor.update(batch, objective) for _ in range(updates))]


def main(directory):
    seen, batch = {}, rows()
    ranks = init_ranks(1, 1)
    want = {tied: measure(actor_of(PLAIN, ranks, tied=tied), batch) for tied in (False, True)}
    half = measure(actor_of(PLAIN, ranks, precision="bf16"), batch)

    ranks = init_ranks(1, 2)
    seen["tied"] = gaps(measure(actor_of(VIRTUAL, ranks, tied=True), batch), want[True])
    seen["bf16"] = gaps(measure(actor_of(VIRTUAL, ranks, precision="bf16"), batch), half)
    actor = actor_of(VIRTUAL, ranks)
    seen["virtual"] = gaps(measure(actor, batch), want[False])
    config = actor.hidden_model.config
    # What Megatron does by itself, on rows of one length: that is what its defaults are made for.
    responses = [[(7 * row + 3 * t) % VOCAB for t in range(10)] for row in range(8)]
    even = SequenceBatch([[1, 2]] * 8, responses, [torch.full((10,), 0.01)] * 8)
    ours = measure(actor, even)
    config.overlap_p2p_comm, config.batch_p2p_comm, config.variable_seq_lengths = False, True, False
    seen["megatron_defaults"] = gaps(measure(actor, even), ours)
    config.overlap_p2p_comm, config.batch_p2p_comm, config.variable_seq_lengths = True, False, True

    collected = WeightCollector(actor.bare_model, ranks, sharded=False).collect()
    plain = build_model(PIPELINE, VOCAB, ranks)
    fill(plain, ranks)
    expected = WeightCollector(plain, ranks, sharded=False).collect()
    seen["sampler"] = all(
        torch.equal(getattr(a, name), getattr(b, name))
        for a, b in [*zip(collected.layers, expected.layers), (collected, expected)]
        for name in ("qkv", "fc1", "fc2", "proj", "input_norm", "pre_mlp_norm", "embedding", "output", "final_norm")
        if hasattr(a, name)
    )

    train(actor, batch, 2)
    path = save_checkpoint(directory / "checkpoints", 2, actor, extra={}, tokenizer_pieces=PIECES)
    after = log_probs(actor, batch)
    save_hugging_face(actor, directory / "exported")
    uninterrupted = train(actor, batch, 3)
    resumed = RLKDActor(VIRTUAL, VOCAB, ranks, pad_id=0)
    load_checkpoint(path, resumed)
    seen["resumed_exactly"] = train(resumed, batch, 3) == uninterrupted
    other = RLKDActor(PIPELINE, VOCAB, ranks, pad_id=0)
    load_checkpoint(path, other)
    seen["into_a_plain_pipeline"] = float((log_probs(other, batch) - after).abs().max())
    continued = torch.tensor(train(other, batch, 3)) / torch.tensor(uninterrupted)
    seen["continued_there"] = float((continued - 1).abs().max())
    back = RLKDActor(VIRTUAL, VOCAB, ranks, pad_id=0)
    load_hugging_face(directory / "exported", back)
    seen["hugging_face_round_trip"] = float((log_probs(back, batch) - after).abs().max())

    ranks = init_ranks(1, 1)
    one = RLKDActor(PLAIN, VOCAB, ranks, pad_id=0)
    load_hugging_face(directory / "exported", one)
    seen["hugging_face_on_one_stage"] = float((log_probs(one, batch) - after).abs().max())
    if ranks.is_main:
        (directory / "seen.json").write_text(json.dumps(seen))
    close_ranks()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
