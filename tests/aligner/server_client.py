"""NeMo-Aligner's own reward client, and ours, against a server at PORT; one rank, prints what it saw as lines of JSON.

Usage: server_client.py PORT TOKENIZER HOW, HOW one of stock, ours, gone, or names of models joined by commas: what
happens to ours with each of them.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import cpu_shim

cpu_shim.install()

import os
import time

import tiny
import torch
from megatron.core import parallel_state as mpu
from nemo_aligner.models.nlp.gpt.reward_critic_clients import RemoteGPTRMClient
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from rlkd_nemo.aligner import GSRMRewardClient, endpoint
from rlkd_nemo.errors import RlkdError

assert tiny.VOCAB
LONG = 400


def tell(**what):
    print("SAW " + json.dumps(what), flush=True)


def batch_of(texts, tokenizer, width, prompt_words=3):
    """Token rows of `width`; an empty text is a filler, one with `...` at the end has no end token."""
    rows = [
        tokenizer(t.removesuffix("...").strip()).input_ids + ([] if t.endswith("...") or not t else [0]) for t in texts
    ]
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)] = torch.tensor(ids)
    return {
        "response_tokens": tokens, "response_lengths": torch.tensor([len(ids) for ids in rows]),
        "prompt_lengths": torch.tensor([min(prompt_words, len(ids)) for ids in rows]),
        "sample_ids": [f"row-{i}" for i in range(len(rows))],
    }  # fmt: skip


def right(a, b, answer=None):
    answer = answer or a
    return f"{a} {b} : [Meta-reasoning] {a} {b} [Answer] {answer} <answer> {answer} </answer>"


def settings(port, name="reward_model", ready_timeout_s=10, request_timeout_s=20):
    return OmegaConf.create(
        {"reward_model": {"name": name, "ip": "127.0.0.1", "port": port}, "pad_to_length": None,
         "ready_timeout_s": ready_timeout_s, "request_timeout_s": request_timeout_s}
    )  # fmt: skip


def ask(port, name, batch):
    """What became of one request to this model: an error, or rewards."""
    # Deadlines far beyond what a permanent error may take; what never answers has a short one.
    timeout = 5 if name == "sleeps" else LONG
    endpoint.MODEL_GRACE_S = 10.0  # all of this server's models are loaded
    started = time.monotonic()
    try:
        client = GSRMRewardClient(settings(port, name, LONG, timeout))
        found = {"rewards": client.infer_rm(batch).result().flatten().tolist()}
        client.communicator.close()
    except RlkdError as error:
        found = {"refused": type(error).__name__, "message": str(error)}
    return {**found, "seconds": time.monotonic() - started}


def main(port, folder, how):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    mpu.initialize_model_parallel()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if how not in ("stock", "ours", "gone"):
        batch = batch_of([right("w1", "w2"), right("w1", "w2", "w2")], tokenizer, 12)
        tell(**{name: ask(port, name, batch) for name in how.split(",")})
        os._exit(0)
    cfg = settings(port)
    started = time.monotonic()
    try:
        client = (RemoteGPTRMClient if how == "stock" else GSRMRewardClient)(cfg)
    except RlkdError as error:
        tell(refused=type(error).__name__, message=str(error), seconds=time.monotonic() - started)
        os._exit(0)
    texts = [right("w1", "w2"), right("w1", "w2", "w2"), "", "w9 w9 : w1", right("w3", "w1") + "..."]
    wide, narrow = batch_of(texts, tokenizer, 20), batch_of(texts[:2], tokenizer, 12)
    # Three requests in flight, of two widths and two sizes.
    futures = [client.infer_rm(batch) for batch in (wide, narrow, wide)]
    answers = [future.result() for future in futures]
    tell(rewards=[a.flatten().tolist() for a in answers], dtype=str(answers[0].dtype), shape=list(answers[0].shape))
    if how != "stock":
        tell(extra=list(client.extra))
        stock = RemoteGPTRMClient(cfg)
        tell(stock_before=stock.infer_rm(narrow).result().flatten().tolist())
        print("READY", flush=True)
        sys.stdin.readline()  # the server is gone by now
        started = time.monotonic()
        tell(gone=client.infer_rm(narrow).result().flatten().tolist(), seconds=time.monotonic() - started)
        print("READY", flush=True)
        sys.stdin.readline()  # and back
        tell(back=client.infer_rm(narrow).result().flatten().tolist())
        tell(stock_back=stock.infer_rm(narrow).result().flatten().tolist())
    client.communicator.close()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:4])
