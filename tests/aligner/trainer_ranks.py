"""NeMo-Aligner's trainer and ours side by side on two data-parallel ranks, with a stub sampler and stub rewards.

Usage: trainer_ranks.py TOKENIZER PORT, a free one. A line `SHOWN name` for each thing that held on both ranks.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import cpu_shim

cpu_shim.install()

import copy
from functools import partial

import tiny
import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from nemo_aligner.algorithms.reinforce import ReinforceTrainer
from nemo_aligner.data.nlp.builders import build_dataloader
from nemo_aligner.models.nlp.gpt.megatron_gpt_reinforce_actor import MegatronGPTReinforceActorModel
from nemo_aligner.utils.batch_iterators import get_batch_iterator_cls
from nemo_aligner.utils.utils import retrieve_model_state_dict_in_cpu
from omegaconf import OmegaConf

from rlkd_nemo.aligner import MegatronGPTRLKDActorModel, RLKDTrainer
from rlkd_nemo.aligner.client import on_first_rank
from rlkd_nemo.aligner.teacher import load_teacher
from rlkd_nemo.errors import CheckpointError, ConfigError, FailureBudgetError, NonFiniteError, ShapeError

PROMPTS, GROUP, WIDTH = 8, 2, 12  # of the data set; rollouts a prompt; tokens
NAN = float("nan")


class Data(torch.utils.data.Dataset):
    def __len__(self):
        return PROMPTS

    def __getitem__(self, index):
        return torch.tensor([2 + index, 3 + index, 4 + index])


def collate(prompts):
    return {"text": torch.stack(prompts), "length": torch.full((len(prompts),), 3)}


class Rewards:
    """`give(tokens)` is the whole reward server."""

    def __init__(self, give):
        self.give = give

    def infer_rm(self, batch):
        return type("Future", (), {"result": lambda _: self.give(batch["response_tokens"])})()


class Log:
    def __init__(self):
        self.seen = []

    def log_metrics(self, metrics, step=None, prefix=""):
        self.seen.append(metrics)


def ends(model):
    """A sampler whose responses all end: `infer` of the actors, without the model."""
    draw = torch.Generator().manual_seed(mpu.get_data_parallel_rank())

    def infer(batch):
        rows = len(batch["text"])
        tokens = torch.randint(2, tiny.VOCAB, (rows, WIDTH), generator=draw)
        tokens[:, :3] = batch["text"][:, :3]
        lengths = torch.randint(5, WIDTH, (rows,), generator=draw)
        for row, length in enumerate(lengths):
            tokens[row, length - 1 :] = 0
        return {"response_tokens": tokens, "response_lengths": lengths, "prompt_lengths": batch["length"],
                "is_end": torch.ones(rows, dtype=torch.bool)}  # fmt: skip

    model.infer = infer


def varied(tokens):
    return tokens.float().mean(1, keepdim=True)


def trainer(cls, cfg, model, give=varied, optimizer=None, iterator=None, mbs=2, **more):
    ends(model)
    builder = partial(build_dataloader, cfg=cfg, dataset=Data(), mbs=mbs, gbs=4, collate_fn=collate, load_gbs=False)
    return cls(
        cfg=cfg.trainer.reinforce, model=model, optimizer=optimizer,
        scheduler=type("Scheduler", (), {"step": lambda _: None})(), train_dataloader_builder=builder,
        val_dataloader_builder=builder, collate_fn=collate, rm=Rewards(give),
        batch_iterator_cls=iterator or get_batch_iterator_cls(OmegaConf.create({"use_flask": False})), logger=Log(),
        ckpt_callback=None, run_timer=None, **more,
    )  # fmt: skip


def shown(name, ok=True):
    worst = torch.tensor(int(ok))
    dist.all_reduce(worst, dist.ReduceOp.MIN)
    if dist.get_rank() == 0:
        print("SHOWN" if worst.item() else "FAILED", name, flush=True)


def refused(name, kind, words, function):
    try:
        function()
    except kind as error:
        shown(name, words in str(error))
        if words not in str(error):
            print(error, flush=True)
    else:
        shown(name, False)


def rows_over_ranks(data):
    """Rows that all data-parallel ranks hold, and how many of them differ."""
    parts = [None, None]
    dist.all_gather_object(parts, [tuple(row) for row in data["response_tokens"].tolist()])
    together = [row for part in parts for row in part]
    return len(together), len(set(together))


def faults(cfg, parent, ours):
    """The parent's three faults; the same questions to our class."""
    with_kl = copy.deepcopy(cfg)
    with_kl.trainer.reinforce.initial_policy_kl_penalty = 0.01
    parent.init_policy_state_dict = retrieve_model_state_dict_in_cpu(parent, megatron_amp_O2=False)
    theirs, mine = trainer(ReinforceTrainer, with_kl, parent), trainer(RLKDTrainer, cfg, ours)
    data, _, _ = theirs.generate_rollouts()
    shown("parent: every data-parallel rank trains on the whole batch", rows_over_ranks(data) == (16, 8))
    shown("parent: rollouts are counted as prompts", theirs.consumed_samples == 8)
    data, metrics, _ = mine.generate_rollouts()
    shown("ours: data-parallel ranks share the batch", rows_over_ranks(data) == (8, 8))
    shown("ours: prompts are counted", (mine.consumed_samples, mine.consumed_rollouts) == (4, 8))
    shown("ours: log", metrics["consumed_samples"] == 4 and metrics["failed_fraction"] == 0.0)
    no_penalty(cfg, parent, ours)


def no_penalty(cfg, parent, ours):
    """The same question to both: a batch of rollouts with a KL penalty of 0."""
    assert cfg.trainer.reinforce.initial_policy_kl_penalty == 0
    try:
        trainer(ReinforceTrainer, cfg, parent).generate_rollouts()
    except (RuntimeError, AssertionError, ValueError) as error:
        shown("parent: a KL penalty of 0 fails", "data.dim() must equal mask.dim()" in str(error))
    else:
        shown("parent: a KL penalty of 0 fails", False)
    mine = trainer(RLKDTrainer, cfg, ours)
    data, metrics, _ = mine.generate_rollouts()
    learns = bool((data["weights"] > 0).any()) and bool((data["advantages"] != 0).any())
    finite = all(bool(value.isfinite().all()) for value in data.values())
    # Nobody reads the start model, so nobody asks it.
    shown("ours: a KL penalty of 0 works", learns and finite and "ref_logprobs" not in data and "rewards" in metrics)
    # It is the parent's way to a KL that fails here; ours is in the loss, on the same penalty of 0.
    taught = copy.deepcopy(cfg)
    taught.trainer.reinforce.rlkd.objective.reference_kl = 0.01
    ours.init_policy_state_dict = retrieve_model_state_dict_in_cpu(ours, megatron_amp_O2=False)
    data, _, _ = trainer(RLKDTrainer, taught, ours).generate_rollouts()
    same = torch.equal(data["ref_logprobs"], data["logprobs"])
    shown("ours: with it, a KL to the start model in the loss", same)


def rewards(cfg, model):
    """What a reward server may get wrong."""

    def with_rewards(give, **keys):
        changed = copy.deepcopy(cfg)
        changed.trainer.reinforce.rlkd.update(keys)
        return trainer(RLKDTrainer, changed, model, give)

    def run(give, **keys):
        return lambda: with_rewards(give, **keys).generate_rollouts()

    refused("rewards of another shape", ShapeError, "torch.float32 (2, 1)", run(lambda t: torch.zeros(len(t))))
    refused("rewards of another dtype", ShapeError, "torch.float64 (2, 1)", run(lambda t: varied(t).double()))
    refused("an infinite reward", NonFiniteError, "not finite", run(lambda t: varied(t) / 0))
    refused("too many failures", FailureBudgetError, "8 of 8", run(lambda t: varied(t) * NAN))

    def one_group_fails(tokens):
        return varied(tokens).masked_fill(tokens[:, :1] == tokens[:, :1].max(), NAN)

    data, metrics, _ = with_rewards(one_group_fails, max_failed_fraction=0.6).generate_rollouts()
    dead = data["weights"].sum(1) == 0
    shown("a group of NaN has no weight and is counted", int(dead.sum()) > 0 and metrics["failed_fraction"] == 0.5)
    shown("the other rows have", bool((data["weights"][~dead].sum(1) > 0).all()) and int(dead.sum()) < len(dead))
    shown("and the mean reward is theirs", metrics["rewards"] == metrics["rewards"] and metrics["unusable_groups"] == 2)


def updates(cfg, model):
    """An update: several passes, none without a scored rollout, none with a NaN."""
    model.setup_optimizer_param_groups()  # what clipping walks over
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}

    def moved():
        return any(bool((p != start[name]).any()) for name, p in model.named_parameters())

    changed = copy.deepcopy(cfg)
    changed.trainer.reinforce.rlkd.update({"epochs": 2, "max_failed_fraction": 1.0})
    nothing = trainer(RLKDTrainer, changed, model, lambda t: varied(t) * NAN, optimizer)
    data, _, _ = nothing.generate_rollouts()
    nothing.run_training(iter([data]))
    shown("an update without a scored rollout leaves the weights alone", not moved())
    broken = {**data, "weights": torch.full_like(data["weights"], NAN), "mask": torch.ones_like(data["mask"])}
    refused("a loss that is not finite", NonFiniteError, "was stepped", lambda: nothing.run_training(iter([broken])))
    shown("and the weights stay", not moved())
    some = trainer(RLKDTrainer, changed, model, varied, optimizer)
    data, _, _ = some.generate_rollouts()
    some.run_training(iter([data]))
    shown("an update moves the weights", moved())
    shown("two epochs are two updates", some.reinforce_optimization_step == 2 and len(some.logger.seen) == 2)
    shown("their metrics are there", {"loss", "grad_norm", "lr", "ratio_mean"} <= some.logger.seen[0].keys())


class Uniform:
    """A teacher of the protocol, not of this process's models."""

    def log_probs(self, prompts, responses):
        self.asked = len(prompts)
        return [torch.full((len(response),), -2.0) for response in responses]


def teachers(cfg, model):
    taught = copy.deepcopy(cfg)
    taught.trainer.reinforce.rlkd.objective = {"name": "trrd"}
    refused("no teacher for trrd", ConfigError, "reads a teacher", lambda: trainer(RLKDTrainer, taught, model))
    teacher = Uniform()
    data, _, _ = trainer(RLKDTrainer, taught, model, teacher=teacher).generate_rollouts()
    values = data["teacher_logprobs"][data["mask"]]
    shown(
        "any teacher of the protocol, asked for this rank's share", teacher.asked == 4 and bool((values == -2.0).all())
    )
    short = Uniform()
    short.log_probs = lambda prompts, responses: [torch.zeros(len(responses[0]))] * len(responses)
    refused(
        "a teacher with another number of log-probs",
        ShapeError,
        "wanted one for each token",
        lambda: trainer(RLKDTrainer, taught, model, teacher=short).generate_rollouts(),
    )
    ending = copy.deepcopy(taught)
    ending.trainer.reinforce.rlkd.drop_teacher_at_end = True
    data, _, _ = trainer(RLKDTrainer, ending, model, teacher=teacher).generate_rollouts()
    ended = data["response_tokens"][:, 1:] == 0
    shown("the teacher can be left out at the end", not bool((data["teacher_mask"] & ended).any()))


def flask(cfg, model, port):
    """NeMo-Aligner's iterator that hands prompts to whichever rank is free: the second is busy until the first has three."""
    iterator = get_batch_iterator_cls(OmegaConf.create({"use_flask": True, "port": int(port)}))
    mine = trainer(RLKDTrainer, cfg, model, iterator=iterator, mbs=1)
    store, quick, asked = dist.distributed_c10d._get_default_store(), model.infer, []

    def infer(batch):
        asked.append(batch)
        if dist.get_rank() == 1:
            store.wait([f"flask {mine.step}"])
        elif len(asked) == 3 * GROUP:
            store.set(f"flask {mine.step}", "three")
        return quick(batch)

    model.infer = infer
    drawn = []
    for mine.step in range(2):
        asked.clear()
        data, metrics, _ = mine.generate_rollouts()
        rows = [data["response_tokens"][:, 0], varied(data["response_tokens"])[:, 0], data["advantages"][:, 0]]
        parts = [None, None]
        dist.all_gather_object(parts, (len(asked), list(zip(*(row.tolist() for row in rows)))))
        shown("flask: a rank that is free takes the prompts", [count for count, _ in parts] == [3 * GROUP, GROUP])
        shown("flask: ranks share the batch", len(rows[0]) == 4 and metrics["rollout_size"] == 8)
        together = [row for _, part in parts for row in part]
        drawn.append(sorted(prompt for prompt, _, _ in together))
        shown("flask: a response keeps its own reward", all(_agree(row, together) for row in together))
    # The first token of a prompt names it: two batches of four of the eight, each with its whole group, none left out.
    groups = all(batch == sorted(GROUP * sorted(set(batch))) for batch in drawn)
    shown("flask: every prompt once, its whole group", groups and sorted({*drawn[0], *drawn[1]}) == list(range(2, 10)))


def _agree(row, rows):
    """Whether an advantage has the sign of its reward's distance to the mean of the rows of the same prompt."""
    prompt, reward, advantage = row
    group = [r for p, r, _ in rows if p == prompt]
    return len(set(group)) == 1 or (reward > sum(group) / len(group)) == (advantage > 0)


def strange_teacher(cfg, ptl_trainer, model, folder):
    """A checkpoint whose tokens are others: its log-probs would be of other tokens."""
    path = pathlib.Path(folder) / "other_teacher.nemo"
    other = copy.deepcopy(cfg)
    other.model.tokenizer.type = tiny.make_tokenizer(f"{folder}/other-{dist.get_rank()}", tiny.WORDS[::-1])
    tiny_model = MegatronGPTRLKDActorModel(other.model, ptl_trainer)
    tiny_model.save_to(str(path))
    dist.barrier()
    refused(
        "a teacher with another tokenizer",
        CheckpointError,
        "and id 2 is the first that differs",
        lambda: load_teacher(str(path), cfg.model, ptl_trainer, model),
    )


def only_the_first_rank_asks():
    def fails():
        raise TypeError("of no kind that was thought of")

    refused("an error of the first rank is every rank's", TypeError, "of no kind", lambda: on_first_rank(fails))


def states(cfg, model):
    mine = trainer(RLKDTrainer, cfg, model)
    state = {"step": 1, "consumed_samples": 2**24 + 1, "reinforce_optimization_step": 3, "consumed_rollouts": 2**25 + 1}
    mine.load_state_dict(state)
    shown("counters beyond float32 are restored", mine.state_dict() == {**state, "epoch": 0})
    state["step"] += dist.get_rank()
    refused("ranks with different checkpoints", ConfigError, "one folder for", lambda: mine.load_state_dict(state))


def settings(cfg, model):
    bad = copy.deepcopy(cfg)
    bad.model.global_batch_size = 3
    model.cfg.global_batch_size = 3
    refused("a global batch that does not divide", ConfigError, "size=3", lambda: trainer(RLKDTrainer, bad, model))
    model.cfg.global_batch_size = 8


def main(tokenizer, port):
    cfg = tiny.config(tokenizer, devices=2)
    ptl_trainer, ours = tiny.build(copy.deepcopy(cfg), MegatronGPTRLKDActorModel)
    _, parent = tiny.build(copy.deepcopy(cfg), MegatronGPTReinforceActorModel)
    only_the_first_rank_asks()
    faults(cfg, parent, ours)
    rewards(cfg, ours)
    teachers(cfg, ours)
    strange_teacher(cfg, ptl_trainer, ours, pathlib.Path(tokenizer).parent)
    flask(cfg, ours, port)
    states(cfg, ours)
    settings(cfg, ours)
    updates(cfg, ours)


if __name__ == "__main__":
    main(*sys.argv[1:3])
