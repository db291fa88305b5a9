"""`model`: architecture, layout over ranks, batches and optimizer."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Schedule:
    """Learning-rate schedule, in optimizer updates."""

    name: str = "constant"  # constant, linear, cosine
    warmup_steps: int = 0
    warmup_ratio: float | None = None  # share of the decay's updates, in place of warmup_steps
    decay_steps: int | None = None  # null: the whole run
    min_lr: float = 0.0


@dataclass
class Optim:
    """AdamW (Megatron's optimizer)."""

    lr: float = 1e-6  # RLAD
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    use_distributed_optimizer: bool = False  # moments and fp32 masters cut over data-parallel ranks (arXiv:1910.02054)
    overlap_grad_sync: bool = False  # gradients travel while the rest of the backward pass runs
    overlap_param_sync: bool = False  # updated weights travel while the next forward pass runs
    bucket_size: int | None = None  # parameters that travel together; null: Megatron's, 40 million or 1 million a rank
    use_precision_aware_optimizer: bool = False  # states in the types below (Transformer Engine's Adam)
    main_params_dtype: str = "fp32"  # fp32, fp16; fp32 costs two bytes beside bf16 weights
    exp_avg_dtype: str = "fp32"  # fp32, bf16, fp16, fp8
    exp_avg_sq_dtype: str = "fp32"  # fp32, bf16, fp16, fp8
    offload_states: bool = False  # moments and masters in host memory while rollouts are sampled and scored
    sched: Schedule = field(default_factory=Schedule)


@dataclass
class TokenizerConfig:
    """`task`: the task's closed vocabulary; `bytes`: UTF-8 bytes; `huggingface`: a tokenizer directory in `type`."""

    library: str = "task"
    type: str | None = None


@dataclass
class RopeScaling:
    """Longer contexts by slower rotations; `llama3` as in Llama 3.1, `yarn` as in arXiv:2309.00071."""

    type: str = "none"  # none, llama3, yarn
    factor: float = 8.0  # how many times longer the context became
    original_max_position_embeddings: int = 8192  # the context before
    low_freq_factor: float = 1.0  # llama3: wavelengths above the old context over this are stretched whole
    high_freq_factor: float = 4.0  # llama3: those below the old context over this are left alone
    beta_fast: float = 32.0  # yarn: channels that turn this often over the old context are left alone
    beta_slow: float = 1.0  # yarn: those that turn less often than this are stretched whole
    attention_factor: float | None = None  # yarn: scales cosines and sines; null: 0.1 ln(factor) + 1
    truncate: bool = True  # yarn: round the bounds of that range outwards to whole channels


@dataclass
class Model:
    """A decoder-only transformer: RMSNorm, SwiGLU, RoPE, grouped-query attention."""

    restore_from_path: str | None = None  # checkpoint or Hugging Face directory to start from; null: random
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    num_layers: int = 4
    hidden_size: int = 96
    ffn_hidden_size: int = 192
    num_attention_heads: int = 4
    num_query_groups: int = 2
    kv_channels: int | None = None  # null: hidden_size / num_attention_heads
    add_qkv_bias: bool = False  # Qwen2
    qk_layernorm: bool = False  # Qwen3: RMSNorm of each head's query and key
    encoder_seq_length: int = 128  # context: prompt + response, tokens
    max_position_embeddings: int | None = None  # context that an export promises; null: encoder_seq_length
    rotary_base: float = 10000.0
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    layernorm_epsilon: float = 1e-5
    init_method_std: float = 0.02
    share_embeddings_and_output_weights: bool = False
    make_vocab_size_divisible_by: int = 8  # times tensor_model_parallel_size, as Megatron pads
    tensor_model_parallel_size: int = 2
    pipeline_model_parallel_size: int = 1
    virtual_pipeline_model_parallel_size: int | None = (
        None  # pieces of the model a stage, for smaller bubbles; null: one
    )
    sequence_parallel: bool = False  # cut norms and residuals over the tensor-parallel ranks too (arXiv:2205.05198)
    transformer_impl: str = "auto"  # local, transformer_engine; auto: the second on a GPU where it is installed
    # FP8 matrix products through Transformer Engine (arXiv:2209.05433); weights stay bf16 with fp32 masters, and the
    # output layer bf16. e4m3; hybrid: e4m3 forward, e5m2 for gradients; null: off.
    fp8: str | None = None
    fp8_recipe: str = "delayed"  # scales from past maxima; tensorwise: the tensor's own; blockwise, mxfp8: its blocks'
    fp8_margin: int = 0  # delayed: scales are 2 ** margin smaller than the maximum allows
    fp8_amax_history_len: int = 1  # delayed: past maxima kept
    fp8_amax_compute_algo: str = "most_recent"  # delayed: most_recent, max (of the history)
    fp8_wgrad: bool = True  # delayed: weight gradients in FP8 too
    fp8_dot_product_attention: bool = False  # delayed, tensorwise: scores in FP8 too
    fp8_multi_head_attention: bool = False  # delayed: what flows between projections and scores too
    first_last_layers_bf16: bool = False  # all but delayed: the layers at both ends stay bf16
    num_layers_at_start_in_bf16: int = 1
    num_layers_at_end_in_bf16: int = 1
    context_parallel_size: int = 1  # ranks that share the tokens of each row
    micro_batch_size: int = 64  # sequences a rank's forward-backward takes at once
    forward_micro_batch_size: int = 128  # the same for forward-only log-probs
    micro_batch_tokens: int | None = None  # tokens a rank, padding included, instead; null: count sequences
    forward_micro_batch_tokens: int | None = None  # the same for forward-only log-probs
    packed_sequences: bool = False  # rows of a micro-batch end to end instead of padded to the longest
    # Tokens of a tile of logits; a tile takes 64 MiB whatever the vocabulary, and up to four wait for backward.
    log_prob_chunk_tokens: int = 4096
    # Activations thrown away and made again in backward; full: whole layers; selective: core
    # attention only, which spares next to nothing where the kernel is fused, as it is here.
    activations_checkpoint_granularity: str | None = None  # full, selective; null: all are kept
    activations_checkpoint_method: str | None = None  # full: uniform (units of num_layers), block (the first of them)
    activations_checkpoint_num_layers: int | None = None  # full: of each pipeline stage
    seed: int = 0
    optim: Optim = field(default_factory=Optim)
