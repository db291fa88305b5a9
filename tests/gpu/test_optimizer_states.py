"""Optimizer states on a GPU: offloaded while sampling, and in less than fp32 with Transformer Engine."""

import pytest
import torch

from rlkd_nemo.config.memory import has_transformer_engine

pytestmark = pytest.mark.gpu
MOMENTS = ("exp_avg", "exp_avg_sq")


@pytest.fixture
def actor_with():
    """`actor_with(precision, seed=0, **optim)`: a small actor on the GPU, in a world of one."""
    from rlkd_nemo.engine.ranks import close_ranks, init_ranks, seed_everything

    from rlkd_nemo.config.schema import Model, Optim
    from rlkd_nemo.engine.actor import RLKDActor

    ranks = init_ranks(1, 1, accelerator="gpu")

    def make(precision, seed=0, **optim):
        seed_everything(seed)
        model = Model(
            hidden_size=128, ffn_hidden_size=256, tensor_model_parallel_size=1, micro_batch_size=2, optim=Optim(**optim)
        )
        return RLKDActor(model, 61, ranks, pad_id=0, precision=precision, total_updates=12)

    yield make
    close_ranks()


def update(actor, count=1):
    """Loss and gradient norm of each of the next updates, one after the other."""
    from rlkd_nemo.training.batch import SequenceBatch
    from rlkd_nemo.training.sft import negative_log_likelihood

    numbers = []
    actor.prepare_for_training()
    for _ in range(count):
        draw = torch.Generator().manual_seed(actor.updates)
        rows = [torch.randint(0, 61, (12,), generator=draw).tolist() for _ in range(4)]
        weights = [torch.full((9,), 1 / 36) for _ in rows]
        batch = SequenceBatch([row[:3] for row in rows], [row[3:] for row in rows], weights)
        metrics = actor.update(batch, negative_log_likelihood)
        numbers += [metrics["loss"], metrics["grad_norm"]]
    return numbers


def inner(actor):
    """The Adam inside."""
    from rlkd_nemo.engine.state.distributed import each

    (one,) = each(actor.optimizer)
    return one.optimizer


def devices(actor):
    return {
        value.device.type for state in inner(actor).state.values() for name, value in state.items() if name in MOMENTS
    }


@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("distributed", [False, True])
def test_states_are_on_the_host_while_sampling(actor_with, precision, distributed, tmp_path):
    from rlkd_nemo.engine.state.checkpoint import load_checkpoint, save_checkpoint

    optim = {"lr": 1e-3, "use_distributed_optimizer": distributed}
    wanted = update(actor_with(precision, **optim), 4)
    actor = actor_with(precision, **optim, offload_states=True)
    got = update(actor, 2)
    full = torch.cuda.memory_allocated()
    actor.finish_training()
    assert devices(actor) == {"cpu"}
    assert all(parameter.is_cuda for parameter in actor.hidden_model.parameters())
    held = sum(p.numel() for p in actor.hidden_model.parameters()) * 4 * (2 if precision == "32" else 3)
    assert full - torch.cuda.memory_allocated() >= 0.95 * held
    actor.get_inference_log_probs([[1, 2]], [[3, 4]], temperature=1.0)
    pieces = [str(i) for i in range(61)]
    path = save_checkpoint(tmp_path, 2, actor, extra={}, tokenizer_pieces=pieces)  # from where they are
    got += update(actor, 2)
    assert devices(actor) == {"cuda"}
    resumed = actor_with(precision, seed=9, **optim)
    load_checkpoint(path, resumed, tokenizer_pieces=pieces)
    assert update(resumed, 2) == pytest.approx(got[4:], rel=1e-5 if precision == "32" else 1e-2)
    assert got == pytest.approx(wanted, rel=1e-5 if precision == "32" else 1e-2)


def test_megatron_fault_the_models_own_weights_are_offloaded_with_the_states(actor_with):
    # Why `StateOffload` is ours: with fp32 weights Megatron's takes the model along.
    actor = actor_with("32")
    update(actor)
    actor.optimizer.offload_to_cpu()
    assert not any(parameter.is_cuda for parameter in actor.hidden_model.parameters())


@pytest.mark.skipif(not has_transformer_engine(), reason="needs Transformer Engine (rlkd_nemo[fp8])")
@pytest.mark.parametrize("kind", ["bf16", "fp8"])
def test_precision_aware_states(actor_with, kind, tmp_path):
    from rlkd_nemo.engine.state.checkpoint import load_checkpoint, save_checkpoint

    types = {"bf16": torch.bfloat16, "fp8": torch.uint8}
    optim = {"lr": 1e-3, "use_distributed_optimizer": True}
    aware = {**optim, "use_precision_aware_optimizer": True, "exp_avg_dtype": kind, "exp_avg_sq_dtype": kind}
    plain = update(actor_with("bf16", **optim), 4)
    actor = actor_with("bf16", **aware)
    got = update(actor, 4)
    assert got[::2] == pytest.approx(plain[::2], rel=0.02)  # the losses
    assert {s[name].dtype for s in inner(actor).state.values() for name in MOMENTS} == {types[kind]}

    pieces = [str(i) for i in range(61)]
    path = save_checkpoint(tmp_path, 4, actor, extra={}, tokenizer_pieces=pieces)
    wanted = update(actor, 3)
    resumed = actor_with("bf16", seed=9, **aware)
    load_checkpoint(path, resumed, tokenizer_pieces=pieces)
    # fp8 moments are stored in fp32 and scaled anew when they are read.
    assert update(resumed, 3) == pytest.approx(wanted, rel=1e-6 if kind == "bf16" else 0.02)
