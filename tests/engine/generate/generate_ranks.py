"""Rank script: rollouts of one layout against Megatron's forward and against the single rank's samples.

Usage: generate_ranks.py TP PP SAMPLES.json; one rank writes the samples, several compare with them.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "parity"))

from rlkd_nemo.engine.ranks import close_ranks, init_ranks

import torch
import torch.distributed as dist
from known_weights import fill

from rlkd_nemo.config.schema import Model
from rlkd_nemo.engine.generate import collect
from rlkd_nemo.engine.generate.engine import EmbeddedRollout
from rlkd_nemo.engine.model.build import build_model
from rlkd_nemo.engine.scoring import sequence_log_probs
from rlkd_nemo.errors import ConfigError, InputError, RlkdError
from rlkd_nemo.types import Problem

VOCAB, EOS, NEW, GROUP = 29, 1, 24, 3  # the vocabulary is padded to 32 or 48
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Letters:
    """Letter i is token i + 3."""

    vocab_size, eos_id, pad_id = VOCAB, EOS, 0

    def encode(self, text):
        return [LETTERS.index(letter) + 3 for letter in text]

    def decode(self, ids):
        return "".join(LETTERS[i - 3] for i in ids if i >= 3)


PROBLEMS = [Problem(f"p{i}", (LETTERS * 2)[i : i + length], "") for i, length in enumerate([5, 1, 12, 5, 7, 2, 9])]


def refused(kind, words, function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except kind as error:
        assert all(word in str(error) for word in words), error
    else:
        raise AssertionError(f"nothing was raised; wanted {kind.__name__} with {words}")


def spoil_padding(model, ranks):
    """Rows that pad the vocabulary would win every draw if they took part."""
    hidden = model.hidden_model
    if ranks.is_last_stage:
        weight = hidden.output_weight()
        first = ranks.tp_rank * weight.shape[0]
        with torch.no_grad():
            weight[max(0, VOCAB - first) :] *= 1000.0


def check(model, ranks, rollouts, temperature, tolerance=1e-4):
    """Every log-prob is Megatron's; returns the largest gap."""
    prompts, responses = [r.prompt_ids for r in rollouts], [r.response_ids for r in rollouts]
    wanted, _ = sequence_log_probs(model, ranks, prompts, responses, temperature=temperature or 1.0, pad_id=0)
    gap = max(float((torch.tensor(r.log_probs) - row).abs().max()) for r, row in zip(rollouts, wanted))
    assert gap <= tolerance, gap
    return gap


def check_greedy(model, ranks, rollouts):
    """No other token is likelier under Megatron's forward, at the first, a middle and the last place of each row."""
    for rollout in rollouts[:: 2 * GROUP]:
        ids = rollout.response_ids
        for place in {0, len(ids) // 2, len(ids) - 1}:
            before = rollout.prompt_ids + ids[:place]
            scores, _ = sequence_log_probs(
                model, ranks, [before] * VOCAB, [[token] for token in range(VOCAB)], temperature=1.0, pad_id=0
            )
            assert int(torch.cat(scores).argmax()) == ids[place]


def plain(rollouts):
    return [[r.problem.id, r.sample, r.response_ids, r.log_probs] for r in rollouts]


def same(got, want, tolerance=1e-4):
    assert [row[:3] for row in got] == [row[:3] for row in want]
    gap = max(abs(a - b) for one, other in zip(got, want) for a, b in zip(one[3], other[3]))
    assert gap <= tolerance, gap


def settings(tp, pp, **changes):
    return Model(
        num_layers=4, hidden_size=32, ffn_hidden_size=48, num_attention_heads=4, num_query_groups=2,
        encoder_seq_length=40, tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, **changes,
    )  # fmt: skip


def generate(engine, problems=PROBLEMS, temperature=0.8, group=GROUP):
    return engine.generate(problems, group, stream=("train", 5), temperature=temperature, max_new_tokens=NEW)


def main(tp, pp, path):
    ranks = init_ranks(tp, pp)
    model = build_model(settings(tp, pp), VOCAB, ranks)
    fill(model, ranks)
    spoil_padding(model, ranks)
    samples = {} if ranks.world_size == 1 else json.loads(pathlib.Path(path).read_text())
    for rollout_tp in sorted({1, tp}):
        engine = EmbeddedRollout(model, ranks, Letters(), tensor_model_parallel_size=rollout_tp, batch_size=64)
        refused(RlkdError, ["refit"], generate, engine)
        engine.refit(4)
        for temperature in (0.0, 0.8):
            got = generate(engine, temperature=temperature)
            assert [(r.group, r.sample) for r in got] == [(g, s) for g in range(7) for s in range(GROUP)]
            check(model, ranks, got, temperature)
            samples.setdefault(str(temperature), plain(got))
            same(plain(got), samples[str(temperature)])
            everywhere = [None] * ranks.world_size
            dist.all_gather_object(everywhere, plain(got))
            assert all(one == everywhere[0] for one in everywhere)
            for r in got:
                assert max(r.response_ids) < VOCAB and len(r.response_ids) <= NEW
                assert r.truncated == (EOS not in r.response_ids) and EOS not in r.response_ids[:-1]
                assert r.text == Letters().decode(r.response_ids) and r.prompt_ids == Letters().encode(r.problem.prompt)
                assert (r.weight_version, r.temperature) == (4, temperature)
        assert len({r.truncated for r in got}) == 2  # both kinds were seen
        assert len({tuple(r.response_ids) for r in got}) == len(got)  # no two samples share their numbers
        check_greedy(model, ranks, generate(engine, temperature=0.0))

        # Neither the batch, nor the order, nor the other problems change a sample.
        engine.batch_size = 4
        same(plain(generate(engine)), samples["0.8"])
        engine.batch_size = 64
        backwards = plain(generate(engine, PROBLEMS[::-1]))
        same(sorted(backwards), sorted(samples["0.8"]))
        same(plain(generate(engine, PROBLEMS[2:3])), samples["0.8"][2 * GROUP : 3 * GROUP])
        # A problem asked twice has as many samples of its own.
        twice = plain(generate(engine, [PROBLEMS[4], PROBLEMS[4]]))
        same(twice[:GROUP], samples["0.8"][4 * GROUP : 5 * GROUP])
        assert len({tuple(row[2]) for row in twice}) == 2 * GROUP

    # New weights are seen after the next refit and not before; buffers stay where they are.
    before, buffer = plain(generate(engine)), engine.collector.buffers["0.qkv"].data_ptr()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.2)
    same(plain(generate(engine)), before)
    engine.refit(5)
    after = generate(engine)
    check(model, ranks, after, 0.8)
    assert plain(after) != before and after[0].weight_version == 5
    assert engine.collector.buffers["0.qkv"].data_ptr() == buffer
    # In many small collectives as in few.
    collect._BUCKET_BYTES = 4096
    pieces = EmbeddedRollout(model, ranks, Letters(), tensor_model_parallel_size=rollout_tp, batch_size=64)
    pieces.refit(5)
    assert plain(generate(pieces)) == plain(after)
    assert generate(engine, []) == []

    too_long = Problem("p-long", LETTERS, "")
    refused(
        InputError, ["p-long", "26", "24", "40", "max_new_tokens", "encoder_seq_length"], generate, engine, [too_long]
    )
    refused(InputError, ["p-empty", "no tokens"], generate, engine, [Problem("p-empty", "", "")])
    refused(InputError, ["group_size=0"], generate, engine, group=0)
    refused(InputError, ["temperature=-1"], generate, engine, temperature=-1)
    refused(ConfigError, ["=3", "neither"], EmbeddedRollout, model, ranks, Letters(), tensor_model_parallel_size=3)
    refused(ConfigError, ["batch_size=0"], EmbeddedRollout, model, ranks, Letters(), batch_size=0)
    other = Letters()
    other.vocab_size = 30
    refused(ConfigError, ["30", "29", "tokenizer"], EmbeddedRollout, model, ranks, other)

    variants(tp, pp, ranks)
    if ranks.world_size == 1:
        pathlib.Path(path).write_text(json.dumps(samples))
    if ranks.is_main:
        print("ROLLOUTS HOLD", flush=True)
    close_ranks()


def variants(tp, pp, ranks):
    """Tied embeddings, query and key norms, bfloat16, one query group over several ranks, an unknown parameter."""
    tied = build_model(settings(tp, pp, share_embeddings_and_output_weights=True), VOCAB, ranks)
    fill(tied, ranks)
    if pp > 1 and ranks.is_last_stage:  # the copy of the embedding on the last stage
        whole = torch.empty_like(tied.hidden_model.output_weight())
    elif pp > 1 and ranks.pp_rank == 0:
        whole = tied.hidden_model.embedding.word_embeddings.weight.detach().clone()
    if pp > 1:
        dist.broadcast(whole, dist.get_global_rank(ranks.pp_group, 0), group=ranks.pp_group)
        if ranks.is_last_stage:
            tied.hidden_model.output_weight().data.copy_(whole)
    normed = build_model(settings(tp, pp), VOCAB, ranks)
    for layer in normed.hidden_model.decoder.layers:
        for name in ("q_layernorm", "k_layernorm"):
            setattr(layer.self_attention, name, torch.nn.RMSNorm(8, eps=1e-5))
    fill(normed, ranks)
    half = build_model(settings(tp, pp), VOCAB, ranks, "bf16")
    fill(half, ranks)
    for model, tolerance in ((tied, 1e-4), (normed, 1e-4), (half, 0.05)):
        for rollout_tp in sorted({1, tp}):
            engine = EmbeddedRollout(model, ranks, Letters(), tensor_model_parallel_size=rollout_tp)
            for version in (0, 1):
                engine.refit(version)
                check(model, ranks, generate(engine, PROBLEMS[:3]), 0.8, tolerance)
    assert engine.decoder.weights.dtype == torch.bfloat16

    if tp > 1:
        single = settings(tp, pp)
        single.num_query_groups = 1
        model = build_model(single, VOCAB, ranks)
        refused(
            ConfigError, ["num_query_groups=1"], EmbeddedRollout, model, ranks, Letters(), tensor_model_parallel_size=tp
        )
        engine = EmbeddedRollout(model, ranks, Letters())
        engine.refit(0)
        check(model, ranks, generate(engine, PROBLEMS[:3]), 0.8)
    strange = build_model(settings(tp, pp), VOCAB, ranks)
    strange.hidden_model.adapter = torch.nn.Linear(2, 2)
    refused(ConfigError, ["adapter.weight"], EmbeddedRollout(strange, ranks, Letters()).refit, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
