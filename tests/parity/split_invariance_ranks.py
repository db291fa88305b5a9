"""Rank script: loss and gradients of one layout against the single rank's, for every objective and cut of an update.

Usage: split_invariance_ranks.py TP PP CP REFERENCE.pt; one rank writes the reference, several compare with it. Every
layout is also run with what must not change the result either: sequence parallelism, recomputation.
"""

import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from rlkd_nemo.engine.ranks import close_ranks, init_ranks

import torch
import torch.distributed as dist
from known_weights import cut, fill, global_name

from rlkd_nemo.config.objectives import GRPO, KDRL, OPD, TRRD
from rlkd_nemo.config.schema import Model, Overlong
from rlkd_nemo.engine import token_log_probs
from rlkd_nemo.engine.actor import RLKDActor
from rlkd_nemo.training import step as steps
from rlkd_nemo.types import Component, Failure, Problem, Rollout, Score

OBJECTIVES = {
    "grpo": GRPO(reference_kl=0.05),
    "kdrl": KDRL(beta=0.2),
    "trrd": TRRD(dual_clip=3.0, tis_cap=2.0),
    "opd": OPD(),
}
# How an update is cut; the first is what a single rank's reference is taken with.
CUTS = [
    {"micro_batch_size": 4},
    {"micro_batch_size": 2},
    {"micro_batch_size": 1},
    {"micro_batch_tokens": 45},
    {"micro_batch_tokens": 45, "packed_sequences": True},
]
VOCAB = 29  # padded to 32 or 48: padding must not count


token_log_probs.TILE = 40  # with chunks of 5 tokens: 8 columns, so that several tiles are joined on every rank


def experience():
    """Four groups of three, ragged; one whole group and one more row failed by the system."""
    draw = torch.Generator().manual_seed(3)
    rollouts, scores = [], []
    for group in range(4):
        for sample in range(3):
            prompt = torch.randint(0, VOCAB, (3 + 2 * group,), generator=draw).tolist()
            response = torch.randint(0, VOCAB, (1 + (5 * group + 3 * sample) % 11,), generator=draw).tolist()
            rollouts.append(
                Rollout(Problem(str(group), "", ""), group, sample, prompt, response, [], "", False, 0, 1.0)
            )
            failed = group == 2 or (group, sample) == (1, 0)
            part = Component(None, Failure.TIMEOUT) if failed else Component(float(sample == 1))
            scores.append(Score({"outcome": part}, part.value))
    return steps.advantage(rollouts, scores, std="population", overlong=Overlong(), max_new_tokens=16, scale=1.0)


def variants(tp, world):
    """Settings of the model beside its layout, by name."""
    named = {"plain": {}}
    if tp > 1:
        named["sequence parallel"] = {"sequence_parallel": True}
    if world > 2:
        return named  # recomputation is a rank's own business: two ranks show it
    full = {"activations_checkpoint_granularity": "full", "activations_checkpoint_num_layers": 1}
    named["recompute full"] = {**full, "activations_checkpoint_method": "uniform", "sequence_parallel": tp > 1}
    if tp > 1:
        named["recompute block"] = {**full, "activations_checkpoint_method": "block"}
    named["recompute selective"] = {"activations_checkpoint_granularity": "selective"}
    return named


def main(tp, pp, cp, path):
    ranks = init_ranks(tp, pp, context_parallel_size=cp)
    layout = {
        "tensor_model_parallel_size": tp, "pipeline_model_parallel_size": pp, "context_parallel_size": cp,
    }  # fmt: skip
    for name, changes in variants(tp, ranks.world_size).items():
        compare(name, ranks, path, **layout, **changes)
    close_ranks()


def kept_for_backward(actor):
    """Bytes of the activations that a forward pass in training keeps; parameters are not counted."""
    parameters = {parameter.data_ptr() for parameter in actor.model.parameters()}
    kept = {}

    def count(tensor):
        if tensor.data_ptr() not in parameters:
            kept[tensor.data_ptr()] = max(kept.get(tensor.data_ptr(), 0), tensor.nbytes)
        held.append(tensor)  # no address may be used twice while counting
        return tensor

    held = []
    tokens = torch.arange(40).remainder(VOCAB).view(2, 20)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        actor.bare_model.train()(tokens, torch.arange(20).expand(2, 20), None)
    return sum(kept.values())


def compare(variant, ranks, path, **changes):
    settings = Model(
        num_layers=4, hidden_size=32, ffn_hidden_size=48, num_attention_heads=4, num_query_groups=2,
        encoder_seq_length=64, add_qkv_bias=True, qk_layernorm=True, forward_micro_batch_size=2,
        log_prob_chunk_tokens=5, **changes,
    )  # fmt: skip
    actor = RLKDActor(settings, VOCAB, ranks, pad_id=0)
    fill(actor.bare_model, ranks)
    if ranks.world_size == 1:
        print("KEPT", kept_for_backward(actor), variant, flush=True)
    exp = experience()
    prompts, responses = [r.prompt_ids for r in exp.rollouts], [r.response_ids for r in exp.rollouts]
    now, _ = actor.get_inference_log_probs(prompts, responses, temperature=0.8)
    for changes in ({"forward_micro_batch_tokens": 64}, {"forward_micro_batch_size": 5, "packed_sequences": True}):
        object.__setattr__(actor.bare_model, "settings", dataclasses.replace(settings, **changes))
        again, _ = actor.get_inference_log_probs(prompts, responses, temperature=0.8)
        worst = max(float((a - b).abs().max()) for a, b in zip(again, now))
        assert worst < 2e-5, f"forward log-probs under {changes} differ by {worst}"
    draw = torch.Generator().manual_seed(4)
    exp.old_log_probs = [row + 0.2 * torch.randn(len(row), generator=draw) for row in now]
    exp.teacher_log_probs = [row + torch.randn(len(row), generator=draw) for row in now]
    exp.ref_log_probs = [row + 0.3 * torch.randn(len(row), generator=draw) for row in now]
    for rollout, row in zip(exp.rollouts, exp.old_log_probs):
        rollout.log_probs = (row + 0.1 * torch.randn(len(row), generator=draw)).tolist()
    if ranks.world_size > 1:
        # The reference's constants: a forward differs in the last digit, and a clip decision must not.
        saved = torch.load(path, weights_only=False)
        worst = max(float((a - b).abs().max()) for a, b in zip(now, saved["now"]))
        assert worst < 2e-5, f"forward log-probs differ by {worst}"
        for name in ("old_log_probs", "teacher_log_probs", "ref_log_probs"):
            setattr(exp, name, saved[name])
        for rollout, row in zip(exp.rollouts, saved["sampler"]):
            rollout.log_probs = row
    rows = steps.updates(exp, 1)[0]
    reference = {
        "now": now, "old_log_probs": exp.old_log_probs, "teacher_log_probs": exp.teacher_log_probs,
        "ref_log_probs": exp.ref_log_probs, "sampler": [r.log_probs for r in exp.rollouts],
    }  # fmt: skip
    worst_loss = worst_gradient = worst_metric = 0.0
    for name, objective in OBJECTIVES.items():
        batch = steps.update_batch(exp, rows, objective, max_new_tokens=16, drop_teacher_at=None)
        # Recomputation knows nothing of rows: one cut is enough.
        for cut_ in CUTS[-1:] if variant.startswith("recompute") else CUTS:
            actor.settings = dataclasses.replace(settings, **cut_)
            actor.prepare_for_training_step()
            loss, metrics = actor.get_loss_and_metrics(batch, steps.bind(name, objective, 0), temperature=0.8)
            gradients = {
                global_name(n, actor.hidden_model.config): p.main_grad.clone()
                for n, p in actor.hidden_model.named_parameters()
            }
            if ranks.world_size == 1:
                reference.setdefault(name, (loss, gradients, metrics))
                saved = reference  # the smaller micro-batches are compared with the first
            want_loss, want, want_metrics = saved[name]
            worst_loss = max(worst_loss, abs(loss - want_loss) / abs(want_loss))
            assert metrics.keys() == want_metrics.keys()
            worst_metric = max(
                worst_metric, *(abs(metrics[k] - want_metrics[k]) / max(abs(want_metrics[k]), 1) for k in metrics)
            )
            for n, parameter in actor.hidden_model.named_parameters():
                n = global_name(n, actor.hidden_model.config)
                full = want[n]
                error = (gradients[n] - cut(full, n, parameter, ranks)).abs().max() / full.abs().max()
                worst_gradient = max(worst_gradient, float(error))
    if ranks.world_size == 1 and variant == "plain":
        torch.save(reference, path)
    worst = torch.tensor([worst_loss, worst_gradient, worst_metric], dtype=torch.float64)
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    if ranks.is_main:
        print("WORST loss {:.3e} gradient {:.3e} metric {:.3e}".format(*worst.tolist()), variant, flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), sys.argv[4])
