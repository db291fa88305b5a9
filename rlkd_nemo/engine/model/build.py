"""Config to Megatron-Core `GPTModel`: RMSNorm, SwiGLU, RoPE, grouped-query attention.

The model returns hidden states on the last pipeline stage; `engine/token_log_probs.py` applies the output layer to the
tokens that matter, so the logits of a whole batch never exist.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from rlkd_nemo.engine.ranks import Ranks

import torch
from megatron.core import tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from rlkd_nemo.config.schema import Model
from rlkd_nemo.engine.model.chunks import Chunks, HiddenChunks
from rlkd_nemo.engine.model.precision import Installed, installed, layer_spec, precision_arguments
from rlkd_nemo.engine.model.rope import rotary_frequencies
from rlkd_nemo.engine.state.distributed import settle

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")


class HiddenGPTModel(GPTModel):
    """GPTModel that stops before its output layer: `forward` gives hidden states [s, b, hidden] on every stage."""

    def _postprocess(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states

    # The data-parallel wrapper, where updated weights arrive while the next forward pass runs.
    _arriving: Any = None

    def await_weights(self, wrapped: Any) -> None:
        """From now on wait for weights on their way through `wrapped`, a DistributedDataParallel, before reading them.

        Megatron waits when a module that owns a weight is called; the output layer never is, and the sampler, exports
        and checkpoints call none.
        """
        object.__setattr__(self, "_arriving", wrapped)  # not a sub-module: it contains this model

    def settle(self) -> None:
        """Have every weight as the last update left it. All ranks call together."""
        if self._arriving is not None:
            settle(self._arriving)

    def named_in_whole(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """This stage's parameters, layers numbered as in the whole model."""
        offset = get_transformer_layer_offset(self.config, self.vp_stage)
        for name, parameter in self.named_parameters():
            match = _LAYER.fullmatch(name)
            yield (f"decoder.layers.{int(match[1]) + offset}.{match[2]}" if match else name), parameter

    def output_weight(self) -> torch.Tensor:
        """This rank's rows of the output matrix, [padded vocabulary / TP, hidden]; last stage only."""
        tied = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if tied else self.output_layer.weight
        if self._arriving is not None:
            self._arriving.param_to_bucket_group[weight].finish_param_sync()
        return weight

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Megatron's, of weights that are all there."""
        self.settle()
        return super().sharded_state_dict(*args, **kwargs)


def padded_vocab_size(vocab_size: int, model: Model) -> int:
    """Rows of the embedding: the vocabulary rounded up as Megatron does, so that every TP rank has as many."""
    multiple = model.make_vocab_size_divisible_by * model.tensor_model_parallel_size
    return math.ceil(vocab_size / multiple) * multiple


def transformer_config(model: Model, precision: str = "32", has: Installed | None = None) -> TransformerConfig:
    """The TransformerConfig of `model`, on a machine with what `has` says (default: nothing but a CPU).

    Recomputation of activations is Megatron's own: `full` keeps the input of a layer (or of several) and makes the rest
    again in backward. `selective` makes the core attention again, for the sake of scores that `FusedAttention` never
    stores: here it spares the log-sum-exps, [tokens, heads] a layer, and nothing else. Queries, keys and values stay,
    and so does the output, as the input of the projection after it.

    Raises ConfigError as `precision_arguments`.
    """
    pipelined, virtual = model.pipeline_model_parallel_size > 1, model.virtual_pipeline_model_parallel_size
    _, attention_factor = rotary_frequencies(model)
    config = TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        kv_channels=model.kv_channels,
        normalization="RMSNorm",
        layernorm_epsilon=model.layernorm_epsilon,
        activation_func=torch.nn.functional.silu,
        gated_linear_unit=True,
        add_bias_linear=False,
        add_qkv_bias=model.add_qkv_bias,
        qk_layernorm=model.qk_layernorm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=model.init_method_std,
        tensor_model_parallel_size=model.tensor_model_parallel_size,
        pipeline_model_parallel_size=model.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=virtual,
        # Under a virtual pipeline of two stages a rank's neighbour before is the one after: Megatron's batched exchange
        # takes the two messages for one another, silently. One by one they are told apart.
        overlap_p2p_comm=virtual is not None,
        batch_p2p_comm=virtual is None,
        sequence_parallel=model.sequence_parallel,
        recompute_granularity=model.activations_checkpoint_granularity,
        recompute_method=model.activations_checkpoint_method,
        recompute_num_layers=model.activations_checkpoint_num_layers,
        context_parallel_size=model.context_parallel_size,
        # Micro-batches are padded to their own longest row; Megatron asks for this dispatcher even without experts.
        variable_seq_lengths=pipelined,
        moe_token_dispatcher_type="alltoall",
        calculate_per_token_loss=True,  # the engine weighs tokens itself: no division by Megatron
        use_cpu_initialization=True,  # the same weights for every tensor-parallel size
        **precision_arguments(model, precision, has or Installed(), plain_rope=attention_factor == 1.0),
    )
    if attention_factor != 1.0:
        # Megatron's attention multiplies cosines and sines by 0.1 * mscale * ln(factor) + 1 where these are set.
        config.yarn_rotary_scaling_factor = math.e
        config.yarn_mscale = (attention_factor - 1.0) * 10.0
        config.yarn_mscale_all_dim = 0.0
    return config


def build_model(model: Model, vocab_size: int, ranks: Ranks, precision: str = "32") -> torch.nn.Module:
    """This rank's stage of the model, on its device, with fresh weights (seeded by `init_ranks`).

    The result has `.hidden_model`, the HiddenGPTModel inside any precision wrapper (under a virtual pipeline Chunks, with
    HiddenChunks inside), `.vocab_size`, the number of real ids, `.settings`, the `Model` it was built from, and `.ranks`.
    """
    has = installed(ranks)
    config = transformer_config(model, precision, has)
    spec, norm = layer_spec(model, has)
    number = model.virtual_pipeline_model_parallel_size
    hidden = [
        _build_chunk(model, vocab_size, ranks, config, spec, norm, stage)
        for stage in ([None] if number is None else range(number))
    ]
    wrapped = [Float16Module(config, chunk) if precision == "bf16" else chunk for chunk in hidden]
    built = wrapped[0] if number is None else Chunks(wrapped)
    # Plain attributes, not sub-modules: the wrapper must not register the inner model twice.
    object.__setattr__(built, "hidden_model", hidden[0] if number is None else HiddenChunks(hidden))
    object.__setattr__(built, "vocab_size", vocab_size)
    object.__setattr__(built, "settings", model)
    object.__setattr__(built, "ranks", ranks)
    return built


def _build_chunk(
    model: Model,
    vocab_size: int,
    ranks: Ranks,
    config: TransformerConfig,
    spec: ModuleSpec,
    norm: Any,
    stage: int | None,
) -> HiddenGPTModel:
    """One piece of the model. `stage`: which of this rank's; None: there is no virtual pipeline."""
    num_layers = get_num_layers_to_build(config, stage)
    first, last = stage in (None, 0), stage in (None, (model.virtual_pipeline_model_parallel_size or 1) - 1)
    built = HiddenGPTModel(
        config=config,
        transformer_layer_spec=TransformerBlockSubmodules(layer_specs=[spec] * num_layers, layer_norm=norm),
        vocab_size=padded_vocab_size(vocab_size, model),
        max_sequence_length=model.encoder_seq_length,
        pre_process=ranks.pp_rank == 0 and first,
        post_process=ranks.is_last_stage and last,
        share_embeddings_and_output_weights=model.share_embeddings_and_output_weights,
        position_embedding_type="rope",
        rotary_base=model.rotary_base,
        vp_stage=stage,
    )
    # Megatron's own scaling knows one set of Llama's constants; the sampler reads the frequencies from here too.
    built.rotary_pos_emb.inv_freq, built.attention_factor = rotary_frequencies(model)
    for parameter in built.parameters():
        tensor_parallel.set_defaults_if_not_set_tensor_model_parallel_attributes(parameter)
    return built.to(ranks.device)
