"""Rank script: Megatron's distributed optimizer, its overlap and its checkpoints, on two ranks and then on one.

Usage: distributed_ranks.py DIRECTORY RESULTS.json; the main rank writes what was seen, the test judges it. On one rank
it only reads what two have saved.
"""

import dataclasses
import json
import pathlib
import sys
import weakref

from rlkd_nemo.engine.ranks import close_ranks, init_ranks

import torch
import torch.distributed as dist
from checkpoint_ranks import batch, log_probs, new_actor, save, settings, train
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from rlkd_nemo.engine.state import checkpoint
from rlkd_nemo.engine.state.distributed import ResumableOptimizer, each
from rlkd_nemo.engine.state.offload import StateOffload, _get
from rlkd_nemo.errors import CheckpointError, ConfigError, NonFiniteError
from rlkd_nemo.losses.batch import TokenLoss
from rlkd_nemo.training.sft import negative_log_likelihood

SEEN: dict = {}
PLAIN = {}
DISTRIBUTED = {"use_distributed_optimizer": True}
# Many buckets, and several micro-batches a rank, so that the order in which they travel matters.
OVERLAPPED = {**DISTRIBUTED, "overlap_grad_sync": True, "overlap_param_sync": True, "bucket_size": 500}
GRADIENTS = {"overlap_grad_sync": True, "bucket_size": 500}


def actor_with(ranks, optim, tp=1, pp=1, precision="32", seed=0, **changes):
    model = settings(tp, pp, micro_batch_size=1, **changes)
    model.optim = dataclasses.replace(model.optim, **optim)
    return new_actor(ranks, model=model, precision=precision, seed=seed)


def weights(actor, settled=True):
    if settled:
        actor.hidden_model.settle()
    return torch.cat([parameter.detach().float().flatten() for parameter in actor.hidden_model.parameters()])


def parity(ranks):
    """Four updates under each optimizer, then the weights as everyone reads them."""
    for precision in ("32", "bf16"):
        wanted = None
        for name, optim in (
            ("plain", PLAIN), ("gradients", GRADIENTS), ("distributed", DISTRIBUTED), ("overlapped", OVERLAPPED),
        ):  # fmt: skip
            actor = actor_with(ranks, optim, precision=precision)
            numbers = train(actor, 4)
            early = weights(actor, settled=False)
            actor.finish_training()
            whole = weights(actor, settled=False)
            wanted = whole if wanted is None else wanted
            gap = float((whole - wanted).abs().max())
            SEEN[f"{name}_{precision}"] = [numbers, log_probs(actor.bare_model, ranks), gap]
            if name == "overlapped":
                SEEN[f"settled_{precision}"] = [len(actor.model.bucket_groups), torch.equal(early, whole)]


def unread_output_weight(ranks):
    """Megatron waits for a weight when its module is called; ours reads the output layer's without calling it."""
    for name, wait in (("waits", True), ("does_not_wait", False)):
        actor = actor_with(ranks, OVERLAPPED)
        if not wait:
            actor.hidden_model._arriving = None
        try:
            SEEN[name] = train(actor, 3)
        except AssertionError as err:
            SEEN[name] = repr(err)


def unfixed(actor, method):
    """The actor's optimizer with Megatron's own `method` and all our other fixes."""
    (one,) = each(actor.optimizer)
    one.__class__ = type("Unfixed", (ResumableOptimizer,), {method: getattr(DistributedOptimizer, method)})
    return one


def megatron_alone(ranks, path):
    """What becomes of a resume when any one of the three fixes is Megatron's own again."""
    for method in ("sharded_state_dict", "_set_main_param_and_optimizer_states"):
        actor = actor_with(ranks, DISTRIBUTED, seed=5)
        unfixed(actor, method)
        try:
            checkpoint.load_checkpoint(path, actor)
            SEEN[method] = "loaded"
        except (AssertionError, KeyError) as err:
            SEEN[method] = repr(err)
    actor = actor_with(ranks, DISTRIBUTED, seed=5)
    one = unfixed(actor, "load_state_dict")
    checkpoint.load_checkpoint(path, actor)
    steps = [state["step"] for state in one.optimizer.state.values()]
    SEEN["shared"] = {"parameters": len(steps), "tensors": len({id(step) for step in steps}), "before": float(steps[0])}
    SEEN["shared_resumed"] = train(actor, 3)
    SEEN["shared"]["after"] = float(steps[0])
    # Several buckets with gaps between them, stored as Megatron does.
    actor = actor_with(ranks, OVERLAPPED)
    train(actor, 3)
    unfixed(actor, "get_parameter_state_dp_zero")
    shifted = save(path.parent / "shifted", 3, actor)
    actor = actor_with(ranks, OVERLAPPED, seed=99)
    checkpoint.load_checkpoint(shifted, actor)
    SEEN["shifted_resumed"] = train(actor, 1)


def resume(root, ranks):
    for precision in ("32", "bf16"):
        for name, optim in (("distributed", DISTRIBUTED), ("overlapped", OVERLAPPED)):
            actor = actor_with(ranks, optim, precision=precision)
            train(actor, 3)
            path = save(root / f"{name}_{precision}", 3, actor)
            SEEN[f"{name}_{precision}_uninterrupted"] = [train(actor, 3), float(weights(actor).double().sum())]
            resumed = actor_with(ranks, optim, precision=precision, seed=99)
            checkpoint.load_checkpoint(path, resumed)
            SEEN[f"{name}_{precision}_resumed"] = [train(resumed, 3), float(weights(resumed).double().sum())]
    megatron_alone(ranks, root / "distributed_32" / "step-000003")
    # Never stepped, and with another optimizer than it was saved with.
    actor = actor_with(ranks, DISTRIBUTED)
    path = save(root / "fresh", 0, actor)
    SEEN["fresh_uninterrupted"] = train(actor, 2)
    resumed = actor_with(ranks, DISTRIBUTED, seed=99)
    checkpoint.load_checkpoint(path, resumed)
    SEEN["fresh_resumed"] = train(resumed, 2)
    try:
        checkpoint.load_checkpoint(root / "distributed_32" / "step-000003", actor_with(ranks, PLAIN))
    except CheckpointError as err:
        SEEN["distributed_to_plain"] = str(err)
    undivided = save(root / "plain_32", 0, actor_with(ranks, PLAIN))
    try:
        checkpoint.load_checkpoint(undivided, actor_with(ranks, DISTRIBUTED))
    except CheckpointError as err:
        SEEN["plain_to_distributed"] = str(err)


def other_layouts(root, ranks, where, tp=1):
    for name, optim in (("distributed", DISTRIBUTED), ("overlapped", OVERLAPPED)):
        for saved in ("distributed", "overlapped"):
            actor = actor_with(ranks, optim, tp=tp, seed=99)
            checkpoint.load_checkpoint(root / f"{saved}_32" / "step-000003", actor)
            SEEN[f"{saved}_to_{name}_{where}"] = train(actor, 3)


def pipeline(root, ranks):
    """Two stages with tied embeddings, which Megatron puts into a bucket of their own."""
    for name, optim in (("plain", PLAIN), ("distributed", DISTRIBUTED), ("overlapped", OVERLAPPED)):
        tied = {"pp": 2, "share_embeddings_and_output_weights": True}
        actor = actor_with(ranks, optim, **tied)
        train(actor, 3)
        path = save(root / f"tied_{name}", 3, actor)
        SEEN[f"tied_{name}"] = train(actor, 3)
        resumed = actor_with(ranks, optim, **tied, seed=99)
        checkpoint.load_checkpoint(path, resumed)
        SEEN[f"tied_{name}_resumed"] = train(resumed, 3)


def offloading(ranks):
    """Optimizer states to other memory and back between updates, on the host, as it goes between host and GPU."""
    for precision in ("32", "bf16"):
        for name, optim in (("plain", PLAIN), ("distributed", DISTRIBUTED)):
            actor = actor_with(ranks, optim, precision=precision)
            train(actor, 2)
            states = StateOffload(actor.optimizer, actor.bare_model, ranks.device)
            places = list(states._places())
            before = [_get(*place).clone() for place in places]
            model = [parameter.data_ptr() for parameter in actor.model.parameters()]
            wanted, moments = (
                log_probs(actor.bare_model, ranks),
                [weakref.ref(_get(*p)) for p in places if p[1] != "data"],
            )
            states.offload()
            states.offload()  # a second time is none
            seen = {
                "places": len(places),
                "parameters": sum(len(group["params"]) for group in actor.optimizer.param_groups),
                "moved": [_get(*p).data_ptr() for p in places] == [host.data_ptr() for host in states._host.values()],
                "left behind": sum(old() is not None for old in moments),
                "model stays": model == [parameter.data_ptr() for parameter in actor.model.parameters()],
                "samples": log_probs(actor.bare_model, ranks) == wanted,
            }
            states.reload()
            states.reload()
            seen["same bits"] = all(torch.equal(a, _get(*place)) for a, place in zip(before, places, strict=True))
            # What the host keeps for the next round is no part of what is trained on.
            for host in states._host.values():
                host.fill_(float("nan"))
            seen["next"] = train(actor, 2)
            states.offload()
            SEEN[f"offload_{name}_{precision}"] = seen
    try:
        actor_with(ranks, {"offload_states": True})
    except ConfigError as err:
        SEEN["offload_on_cpu"] = str(err)


def finite_loss_without_gradient(log_probs, mask, fields):
    """0 a token, whose derivative is infinite."""
    return TokenLoss((log_probs - log_probs.detach()).abs().sqrt() * mask, {})


def not_a_number(log_probs, mask, fields):
    return TokenLoss(log_probs * float("nan") * mask, {})


def nan_gradients(ranks):
    """Megatron's `step()` on a NaN in one gradient; then our update on a loss that has one."""
    for precision in ("32", "bf16"):
        for name, optim in (("plain", PLAIN), ("distributed", DISTRIBUTED), ("overlapped", OVERLAPPED)):
            actor = actor_with(ranks, optim, precision=precision)
            actor.prepare_for_training_step()
            next(actor.model.parameters()).main_grad.fill_(float("nan"))
            success, norm, _ = actor.optimizer.step()
            poisoned = int(weights(actor).isnan().sum())
            seen = {"success": bool(success), "norm": float(norm), "poisoned": poisoned}

            actor = actor_with(ranks, optim, precision=precision)
            train(actor, 1)
            before = weights(actor).clone()
            for case, objective in (("gradient", finite_loss_without_gradient), ("loss", not_a_number)):
                try:
                    actor.update(batch(1), objective)
                    seen[case] = "updated"
                except NonFiniteError as err:
                    seen[case] = str(err)
            seen["unharmed"] = torch.equal(before, weights(actor))
            actor.prepare_for_training_step()
            seen["goes_on"] = actor.update(batch(1), negative_log_likelihood)["grad_norm"]
            SEEN[f"nan_{name}_{precision}"] = seen


def main(root, results):
    ranks = init_ranks(1, 1)
    if ranks.world_size == 1:
        other_layouts(root, ranks, "one_rank")
    else:
        parity(ranks)
        unread_output_weight(ranks)
        resume(root, ranks)
        nan_gradients(ranks)
        offloading(ranks)
        other_layouts(root, init_ranks(2, 1), "tp2", tp=2)
        pipeline(root, init_ranks(1, 2))
    if dist.get_rank() == 0:
        results.write_text(json.dumps(SEEN))
    close_ranks()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
