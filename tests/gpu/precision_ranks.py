"""One rank with a GPU: the same update by two ways of computing it. Usage: precision_ranks.py CASE [RECIPE]."""

import dataclasses
import sys
from unittest import mock

from rlkd_nemo.engine.ranks import close_ranks, init_ranks

import torch

from rlkd_nemo.config.schema import Model
from rlkd_nemo.engine.actor import RLKDActor
from rlkd_nemo.engine.hugging_face.tensors import pieces
from rlkd_nemo.engine.model import build
from rlkd_nemo.engine.model.precision import installed
from rlkd_nemo.errors import ConfigError
from rlkd_nemo.losses.batch import TokenLoss
from rlkd_nemo.training.batch import SequenceBatch

VOCAB = 256
LOCAL = Model(
    num_layers=4, hidden_size=256, ffn_hidden_size=512, num_attention_heads=4, num_query_groups=2,
    tensor_model_parallel_size=1, encoder_seq_length=128, transformer_impl="local", micro_batch_size=4,
)  # fmt: skip


def update(settings, ranks, **has):
    """Log-probs and gradients of one batch, by Hugging Face's names, with the weights that `settings` say are local."""
    features = dataclasses.replace(installed(ranks), **has)
    with mock.patch.object(build, "installed", lambda _: features):
        actor = RLKDActor(settings, VOCAB, ranks, pad_id=0, precision="bf16")
    draw = torch.Generator().manual_seed(5)
    views = {piece.name: piece for piece in pieces(actor.hidden_model)}
    for name in sorted(views):
        value = torch.randn(views[name].shape, generator=draw) * 0.05 + ("norm" in name)
        views[name].view.copy_(value.view(views[name].view.shape))
    actor.optimizer.reload_model_params()
    rows = [torch.randint(0, VOCAB, (24 + 3 * row,), generator=draw).tolist() for row in range(8)]
    prompts, responses = [row[:5] for row in rows], [row[5:] for row in rows]
    log_probs = torch.cat(actor.get_inference_log_probs(prompts, responses, temperature=1.0)[0])
    batch = SequenceBatch(prompts, responses, [torch.full((len(r),), 0.01) for r in responses])
    actor.prepare_for_training_step()
    actor.get_loss_and_metrics(batch, lambda log_probs, mask, fields: TokenLoss(-log_probs, {}))
    gradients = torch.cat([p.main_grad.flatten() for _, p in sorted(actor.hidden_model.named_parameters(), key=key)])
    metrics = actor.update(batch, lambda log_probs, mask, fields: TokenLoss(-log_probs, {}))
    assert all(torch.tensor([metrics["loss"], metrics["grad_norm"]]).isfinite()), metrics
    return log_probs, gradients


def key(named):
    """The same order of parameters whichever implementation names them."""
    name = named[0].replace("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight")
    return name.replace("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight")


def compare(one, other, *, nats, angle):
    """`nats`: largest difference of a log-prob; `angle`: of gradients, one minus their cosine."""
    gap = float((one[0] - other[0]).abs().max())
    off = 1.0 - float(torch.nn.functional.cosine_similarity(one[1].double(), other[1].double(), dim=0))
    assert gap < nats, f"log-probs differ by {gap} nats"
    assert off < angle, f"gradients: 1 - cosine = {off}"
    print(f"CLOSE nats {gap:.3e} angle {off:.3e}", flush=True)


def main(case, recipe="delayed"):
    ranks = init_ranks(1, 1)
    engine = dataclasses.replace(LOCAL, transformer_impl="transformer_engine")
    if case == "hardware":
        try:
            update(dataclasses.replace(engine, fp8="hybrid"), ranks, capability=(8, 0))
        except ConfigError:
            print("REFUSED", flush=True)
    elif case == "layers":
        compare(update(LOCAL, ranks), update(engine, ranks), nats=0.1, angle=1e-3)
    elif case == "fp8":
        compare(update(LOCAL, ranks), update(dataclasses.replace(engine, fp8="hybrid", fp8_recipe=recipe), ranks),
                nats=0.5, angle=0.05)  # fmt: skip
    elif case == "apex":
        without = update(LOCAL, ranks, apex_weight_gradients=False)
        compare(without, update(LOCAL, ranks, apex_weight_gradients=True), nats=1e-6, angle=1e-4)
    elif case == "compiled":
        compare(update(LOCAL, ranks, compiler=False), update(LOCAL, ranks, compiler=True), nats=0.1, angle=1e-3)
    close_ranks()


if __name__ == "__main__":
    main(*sys.argv[1:])
