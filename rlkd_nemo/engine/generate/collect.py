"""Weights out of a Megatron model into a decoder's buffers: whole on every rank, or one tensor-parallel share of it."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator

from rlkd_nemo.engine.ranks import Ranks

import torch
import torch.distributed as dist

from rlkd_nemo.engine.generate.weights import DecoderWeights, LayerWeights, interleaved, interleaved_qkv
from rlkd_nemo.errors import ConfigError
from rlkd_nemo.lifecycle.watchdog import mark

log = logging.getLogger(__name__)

# Bytes of one rank that travel in one collective: gloo pays by the call, memory by the byte.
_BUCKET_BYTES = 64 * 2**20

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_PARTS = {
    "input_layernorm.weight": "input_norm",
    # The same two in Transformer Engine's layers, where each is part of the matrix that follows.
    "self_attention.linear_qkv.layer_norm_weight": "input_norm",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_norm",
    "self_attention.linear_qkv.weight": "qkv",
    "self_attention.linear_qkv.bias": "qkv_bias",
    "self_attention.q_layernorm.weight": "q_norm",
    "self_attention.k_layernorm.weight": "k_norm",
    "self_attention.linear_proj.weight": "proj",
    "pre_mlp_layernorm.weight": "pre_mlp_norm",
    "mlp.linear_fc1.weight": "fc1",
    "mlp.linear_fc2.weight": "fc2",
}
_ENDS = {
    "embedding.word_embeddings.weight": "embedding",
    "decoder.final_layernorm.weight": "final_norm",
    "output_layer.weight": "output",
}


class WeightCollector:
    """Collects the weights of a model of `build_model`, again and again into the same buffers.

    Args:
        sharded: keep this tensor-parallel rank's share of every layer; otherwise every rank gets all of it. Layers of
            all pipeline stages come together either way. All ranks of a model call `collect` together.
    Raises: ConfigError when the model has a parameter that the decoder does not know, or shards that split a group.
    """

    def __init__(self, model: torch.nn.Module, ranks: Ranks, *, sharded: bool) -> None:
        self.model, self.ranks = model.hidden_model, ranks
        self.sharded = sharded and ranks.tp_size > 1
        self.vocab_size = model.vocab_size
        config = self.model.config
        if self.sharded and config.num_query_groups % ranks.tp_size:
            raise ConfigError(
                f"rollout.tensor_model_parallel_size={ranks.tp_size} does not divide "
                f"model.num_query_groups={config.num_query_groups}: a rank would hold part of a key; "
                "set rollout.tensor_model_parallel_size=1"
            )
        share = ranks.tp_size if self.sharded else 1
        self.num_heads = config.num_attention_heads // share
        self.num_groups = config.num_query_groups // share
        self.head_order = interleaved(config.kv_channels)
        self.qkv_order = interleaved_qkv(self.num_groups, self.num_heads // self.num_groups, config.kv_channels)
        self.stages: list[list[tuple[str, torch.Size]]] = []
        self.buffers: dict[str, torch.Tensor] = {}
        self.weights: DecoderWeights | None = None

    @torch.no_grad()
    def collect(self) -> DecoderWeights:
        """The model's weights as they are now; the same object, with new content, on every call."""
        self.model.settle()
        started, received = time.perf_counter(), 0
        mine = dict(self._named())
        if not self.stages:
            self._exchange_shapes(mine)
        for stage, bucket in self._buckets():
            mark(f"weights of stage {stage}")
            for name, shards, size in self._travel(stage, bucket, mine):
                self._store(name, shards)
                received += size
        if self.weights is None:
            self.weights = self._assemble()
        elif self.model.share_embeddings_and_output_weights:
            self._tie()
        log.debug("collected %.2f MB of weights in %.3f s", received / 1e6, time.perf_counter() - started)
        return self.weights

    def _named(self) -> Iterator[tuple[str, torch.Tensor]]:
        """This stage's parameters under their names in the whole decoder, `layer.part` or an end's name."""
        for name, parameter in self.model.named_in_whole():
            match = _LAYER.fullmatch(name)
            if match and match[2] in _PARTS:
                yield f"{match[1]}.{_PARTS[match[2]]}", parameter.detach()
            elif name not in _ENDS:
                raise ConfigError(
                    f"parameter {name} is not part of the embedded decoder (RMSNorm, SwiGLU, RoPE, biases on QKV only); "
                    "use another rollout.engine for this model"
                )
            # A tied model on several stages has a second copy of the embedding on the last one.
            elif not (self.model.share_embeddings_and_output_weights and _ENDS[name] == "output"):
                yield _ENDS[name], parameter.detach()

    def _exchange_shapes(self, mine: dict[str, torch.Tensor]) -> None:
        shapes = [(name, tensor.shape) for name, tensor in mine.items()]
        self.stages = [shapes]
        if self.ranks.pp_size > 1:
            self.stages = [[]] * self.ranks.pp_size
            dist.all_gather_object(self.stages, shapes, group=self.ranks.pp_group)

    def _buckets(self) -> Iterator[tuple[int, list[tuple[str, torch.Size]]]]:
        limit = _BUCKET_BYTES // next(self.model.parameters()).element_size()
        for stage, shapes in enumerate(self.stages):
            bucket: list[tuple[str, torch.Size]] = []
            total = 0
            for name, shape in shapes:
                if bucket and total + shape.numel() > limit:
                    yield stage, bucket
                    bucket, total = [], 0
                bucket.append((name, shape))
                total += shape.numel()
            yield stage, bucket

    def _travel(
        self, stage: int, bucket: list[tuple[str, torch.Size]], mine: dict[str, torch.Tensor]
    ) -> Iterator[tuple[str, list[torch.Tensor], int]]:
        """Name, shards in order of tensor-parallel rank, bytes; one broadcast and one all-gather for the bucket."""
        ranks = self.ranks
        gather = ranks.tp_size > 1 and not self.sharded
        if ranks.pp_size == 1 and not gather:
            for name, _ in bucket:
                yield name, [mine[name]], mine[name].nbytes
            return
        if ranks.pp_rank == stage:
            flat = torch.cat([mine[name].reshape(-1) for name, _ in bucket])
        else:
            example = next(self.model.parameters())
            flat = example.new_empty(sum(shape.numel() for _, shape in bucket))
        if ranks.pp_size > 1:
            dist.broadcast(flat, dist.get_global_rank(ranks.pp_group, stage), group=ranks.pp_group)
        flats = [flat]
        if gather:
            flats = [torch.empty_like(flat) for _ in range(ranks.tp_size)]
            dist.all_gather(flats, flat, group=ranks.tp_group)
        start = 0
        for name, shape in bucket:
            end = start + shape.numel()
            shards = [one[start:end].view(shape) for one in flats]
            yield name, shards, sum(shard.nbytes for shard in shards)
            start = end

    def _store(self, name: str, shards: list[torch.Tensor]) -> None:
        """Join the shards as Megatron cut them and put them into this tensor's buffer, in the decoder's layout."""
        part = name.rpartition(".")[2]
        if part.endswith("_norm"):
            value = shards[0]
            if part in ("q_norm", "k_norm"):
                value = value[self.head_order]
        elif part in ("embedding", "output"):
            value = torch.cat(shards)
            if not self.sharded:
                value = value[: self.vocab_size]
            if part == "output":
                value = value.T
        elif part in ("qkv", "qkv_bias"):
            value = torch.cat(shards)[self.qkv_order]
            if part == "qkv":
                value = value.T
        elif part == "fc1":  # every rank stacks its own [gate; up]
            halves = [shard.chunk(2) for shard in shards]
            value = torch.cat([gate for gate, _ in halves] + [up for _, up in halves]).T
        else:  # proj and fc2 are cut along their input
            value = torch.cat([shard.T for shard in shards])
        if name in self.buffers:
            self.buffers[name].copy_(value)
        else:
            self.buffers[name] = value.clone(memory_format=torch.contiguous_format)

    def _tie(self) -> None:
        if "output" in self.buffers:
            self.buffers["output"].copy_(self.buffers["embedding"].T)
        else:
            self.buffers["output"] = self.buffers["embedding"].T.clone(memory_format=torch.contiguous_format)

    def _assemble(self) -> DecoderWeights:
        if self.model.share_embeddings_and_output_weights:
            self._tie()
        layers: list[dict[str, torch.Tensor]] = [{} for _ in range(self.model.config.num_layers)]
        for name, buffer in self.buffers.items():
            number, _, part = name.rpartition(".")
            if number:
                layers[int(number)][part] = buffer
        config = self.model.config
        return DecoderWeights(
            embedding=self.buffers["embedding"],
            layers=[LayerWeights(**parts) for parts in layers],
            final_norm=self.buffers["final_norm"],
            output=self.buffers["output"],
            num_heads=self.num_heads,
            num_groups=self.num_groups,
            head_dim=config.kv_channels,
            norm_eps=config.layernorm_epsilon,
            rotary_frequencies=self.model.rotary_pos_emb.inv_freq,
            attention_factor=self.model.attention_factor,
            vocab_size=self.vocab_size,
            group=self.ranks.tp_group if self.sharded else None,
        )
