"""Rank script: every family from Hugging Face, compared with transformers, sampled from, and back again.

Usage: families_ranks.py TP PP DIRECTORY; DIRECTORY/<name> are models, DIRECTORY/wanted.pt their log-probs.
"""

import json
import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "parity"))

from rlkd_nemo.engine.ranks import close_ranks, init_ranks

import torch
import torch.distributed as dist
from known_weights import cut, global_name
from safetensors.torch import load_file

from rlkd_nemo.config.schema import Model
from rlkd_nemo.engine.actor import RLKDActor
from rlkd_nemo.engine.generate.engine import EmbeddedRollout
from rlkd_nemo.engine.hugging_face import save
from rlkd_nemo.engine.hugging_face.config import model_from_hugging_face
from rlkd_nemo.engine.hugging_face.load import load_hugging_face
from rlkd_nemo.engine.hugging_face.save import save_hugging_face
from rlkd_nemo.engine.model.build import build_model
from rlkd_nemo.engine.scoring import sequence_log_probs
from rlkd_nemo.errors import InputError
from rlkd_nemo.losses.batch import TokenLoss
from rlkd_nemo.training.batch import SequenceBatch
from rlkd_nemo.types import Problem

VOCAB, EOS = 61, 1
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Letters:
    vocab_size, eos_id, pad_id = VOCAB, EOS, 0

    def encode(self, text):
        return [LETTERS.index(letter) + 3 for letter in text]

    def decode(self, ids):
        return " ".join(map(str, ids))


PROBLEMS = [Problem(f"p{i}", (LETTERS * 2)[i : i + length], "") for i, length in enumerate([5, 1, 22, 7])]


def tensors(directory):
    return {name: value for file in directory.glob("*.safetensors") for name, value in load_file(file).items()}


def sampler_gap(model, ranks):
    """Largest difference between the log-probs of the sampler and of Megatron."""
    gap = 0.0
    for rollout_tp in sorted({1, ranks.tp_size}):
        engine = EmbeddedRollout(model, ranks, Letters(), tensor_model_parallel_size=rollout_tp)
        engine.refit(0)
        got = engine.generate(PROBLEMS, 2, stream=("t", 0), temperature=0.8, max_new_tokens=20)
        wanted, _ = sequence_log_probs(
            model, ranks, [r.prompt_ids for r in got], [r.response_ids for r in got], temperature=0.8, pad_id=0
        )
        gap = max(gap, *(float((torch.tensor(r.log_probs) - row).abs().max()) for r, row in zip(got, wanted)))
    return gap


def small_gradients(settings, directory, ids, ranks):
    """Gradients of the parameters that only some families have, and the norm of all, of a mean negative log-prob."""
    actor = RLKDActor(settings, VOCAB, ranks, pad_id=0)
    load_hugging_face(directory, actor)
    rows = [ids[:30], ids[5:40]]
    prompts, responses = [row[:3] for row in rows], [row[3:] for row in rows]
    batch = SequenceBatch(prompts, responses, [torch.full((len(row),), 0.02) for row in responses])
    actor.prepare_for_training_step()
    actor.get_loss_and_metrics(batch, lambda log_probs, mask, fields: TokenLoss(-log_probs * mask, {}))
    actor.optimizer.prepare_grads()
    own = {
        global_name(name, actor.hidden_model.config): parameter
        for name, parameter in actor.hidden_model.named_parameters()
        if "q_layernorm" in name or "k_layernorm" in name or "qkv.bias" in name
    }
    return float(actor.optimizer.get_grad_norm()), own


def main(tp, pp, root):
    ranks = init_ranks(tp, pp)
    root = pathlib.Path(root)
    wanted = torch.load(root / "wanted.pt", weights_only=False)
    for name, (ids, log_probs) in wanted.items():
        current = Model(
            num_layers=9, encoder_seq_length=48, tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp,
            sequence_parallel=tp > 1 and pp > 1,
        )  # fmt: skip
        settings = model_from_hugging_face(root / name, current)
        model = build_model(settings, VOCAB, ranks)
        files = load_hugging_face(root / name, model)
        got, _ = sequence_log_probs(model, ranks, [ids[:1]], [ids[1:]], temperature=1.0, pad_id=0)
        gap = float((got[0].double() - log_probs).abs().max())
        assert gap <= 1e-4, (name, gap)
        sampler = sampler_gap(model, ranks)
        assert sampler <= 1e-4, (name, sampler)

        # Host memory: no slice is above this rank's share of the largest tensor, 64 rows (padded) of 32 in fp32.
        assert files.largest_read <= 64 // tp * 32 * 4, files.largest_read

        # There and back: the same tensors to the last bit, under the same names, in several shards.
        out = root / f"{name}-{tp}-{pp}"
        save_hugging_face(model, out, family=name.partition("_")[0], max_shard_bytes=30_000)
        if ranks.is_main:
            first, second = tensors(root / name), tensors(out)
            assert first.keys() == second.keys(), first.keys() ^ second.keys()
            assert all(torch.equal(first[key], second[key]) for key in first), name
            assert len(list(out.glob("*.safetensors"))) > 1 and not list(root.glob("*.tmp"))
        assert model_from_hugging_face(out, current) == settings

        norm, own = small_gradients(settings, root / name, ids, ranks)
        assert bool(own) == (name in ("qwen2", "qwen3"))
        place = root / f"{name}.gradients"
        if ranks.world_size == 1:
            torch.save((norm, {key: parameter.main_grad.clone() for key, parameter in own.items()}), place)
        else:
            want_norm, want = torch.load(place)
            assert abs(norm - want_norm) <= 1e-5 * want_norm, (name, norm, want_norm)
            for key, parameter in own.items():
                error = (parameter.main_grad - cut(want[key], key, parameter, ranks)).abs().max()
                assert error <= 1e-5 * want[key].abs().max(), (name, key, error)
        worst = torch.tensor([gap, sampler], dtype=torch.float64)
        dist.all_reduce(worst, dist.ReduceOp.MAX)
        if ranks.is_main:
            print(f"FAMILY {name} transformers {worst[0]:.2e} sampler {worst[1]:.2e} norm {norm:.6f}", flush=True)

    # A failure reaches every rank, and leaves nothing behind.
    for action, words in (
        (lambda: save_hugging_face(model, out), "exists already"),
        (lambda: save_hugging_face(model, root / "wanted.pt" / "out"), "was not written"),
        (lambda: load_hugging_face(root / "llama", model), "another model"),
    ):
        try:
            action()
        except InputError as err:
            assert words in str(err), err
        else:
            raise AssertionError(words)
    damaged_export_is_noticed(model, root / "damaged")
    if ranks.is_main:
        assert not list(root.glob("*.tmp")) and not (root / "damaged").exists()
        shutil.rmtree(out)
        print("FAMILIES HOLD", json.dumps([tp, pp]), flush=True)
    close_ranks()


def damaged_export_is_noticed(model, target):
    """A value that changes on its way to the file is found by reading it back."""
    plain = save.save_file

    def spoiled(shard, *args):
        shard = {name: value * 1.01 if name.endswith("o_proj.weight") else value for name, value in shard.items()}
        plain(shard, *args)

    save.save_file = spoiled
    try:
        save_hugging_face(model, target)
    except InputError as err:
        assert "other log-probs" in str(err), err
    else:
        raise AssertionError("a damaged export was published")
    finally:
        save.save_file = plain


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
