"""The trainer and the reward client's answers on two ranks that share one model, in one layout.

Usage: model_parallel_ranks.py TOKENIZER TP PP. A line `SHOWN name` for each thing that held on both ranks.
"""

import pathlib
import sys
from concurrent.futures import Future

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import cpu_shim

cpu_shim.install()

import copy
import types

import numpy as np
import tiny
import torch
import torch.distributed as dist
import trainer_ranks
from nemo_aligner.utils.distributed import run_if_model_parallel_src
from trainer_ranks import Uniform, refused, shown

from rlkd_nemo.aligner import MegatronGPTRLKDActorModel, RLKDTrainer
from rlkd_nemo.aligner.client import RewardFuture
from rlkd_nemo.errors import BadReply, ShapeError

CLIENT = types.SimpleNamespace(url="http://here", name="reward_model", request_timeout_s=60.0)
DATA = {"tokens": np.zeros((2, 4), dtype=np.int64)}


def answered(value):
    """The client's answer to a request that only the first rank of the model has sent, and that ended so."""

    def send():
        pending = Future()
        pending.set_exception(value) if isinstance(value, Exception) else pending.set_result(value)
        return pending

    return RewardFuture(CLIENT, DATA, run_if_model_parallel_src(send))


def answers():
    rewards = answered({"rewards": np.array([[1.0], [2.0]], dtype=np.float32)}).result()
    shown("every rank of a model has its rewards", rewards.flatten().tolist() == [1.0, 2.0])
    wide = {"rewards": np.zeros((2, 2), dtype=np.float32)}
    refused("rewards of another shape are every rank's error", ShapeError, "(2, 2)", lambda: answered(wide).result())
    odd = KeyError("of no kind that was thought of")
    refused("any error of the rank that asks is every rank's", BadReply, "no kind that", lambda: answered(odd).result())


class Moody(Uniform):
    """Answers each rank otherwise, as a server may that is asked twice."""

    def log_probs(self, prompts, responses):
        return [row - dist.get_rank() for row in super().log_probs(prompts, responses)]


def same_on_all(tensor):
    parts = [None, None]
    dist.all_gather_object(parts, tensor.tolist())
    return parts[0] == parts[1]


def training(cfg, model):
    taught = copy.deepcopy(cfg)
    taught.trainer.reinforce.rlkd.objective = {"name": "trrd"}
    model.setup_optimizer_param_groups()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mine = trainer_ranks.trainer(RLKDTrainer, taught, model, teacher=Moody(), optimizer=optimizer)
    data, metrics, _ = mine.generate_rollouts()
    shown("ranks of a model have the same rows", same_on_all(data["response_tokens"]) and metrics["rollout_size"] == 8)
    shown("and learn from one answer of the teacher", same_on_all(data["teacher_logprobs"]))
    shown("of which every rank has its log-probs", same_on_all(data["logprobs"]) and bool((data["logprobs"] < 0).any()))
    loss, seen = mine.run_training(iter([data]))
    shown(
        "an update's loss and metrics are one", same_on_all(torch.tensor([loss, *seen.values()], dtype=torch.float64))
    )


def main(tokenizer, tp, pp):
    cfg = tiny.config(tokenizer, devices=2, tp=int(tp), pp=int(pp))
    _, ours = tiny.build(copy.deepcopy(cfg), MegatronGPTRLKDActorModel)
    answers()
    training(cfg, ours)


if __name__ == "__main__":
    main(*sys.argv[1:4])
