"""A tiny NeMo model, tokenizer and trainer on CPU ranks, with NeMo-Aligner's own keys. Import after `cpu_shim.install()`."""

from omegaconf import OmegaConf

WORDS = [f"w{i}" for i in range(27)]
VOCAB = 2 + len(WORDS)  # <eos> and <unk> come first; padded to 32: padding must not count


def make_tokenizer(folder, words=tuple(WORDS)):
    """A word-level tokenizer in `folder`; id 0 ends a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<eos>", "<unk>", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<eos>", unk_token="<unk>", pad_token="<eos>"
    ).save_pretrained(folder)
    return str(folder)


def config(tokenizer, *, tp=1, pp=1, devices=1, **changes):
    """The whole config of a run; dotted keys in `changes`."""
    model = {
        "mcore_gpt": True, "micro_batch_size": 1, "global_batch_size": 8, "seed": 7, "precision": 32,
        "tensor_model_parallel_size": tp, "pipeline_model_parallel_size": pp, "context_parallel_size": 1,
        "virtual_pipeline_model_parallel_size": None,
        "encoder_seq_length": 32, "max_position_embeddings": 32, "num_layers": 2, "hidden_size": 32,
        "ffn_hidden_size": 48, "num_attention_heads": 4, "num_query_groups": 2, "kv_channels": None,
        "init_method_std": 0.02, "use_scaled_init_method": True, "hidden_dropout": 0.0, "attention_dropout": 0.0,
        "ffn_dropout": 0.0, "normalization": "rmsnorm", "layernorm_epsilon": 1e-5, "bias": False,
        "activation": "fast-swiglu", "position_embedding_type": "rope", "rotary_percentage": 1.0, "rotary_base": 10000,
        "share_embeddings_and_output_weights": False, "make_vocab_size_divisible_by": 8, "pre_process": True,
        "post_process": True, "do_layer_norm_weight_decay": False, "transformer_block_type": "pre_ln",
        "megatron_amp_O2": False, "grad_allreduce_chunk_size_mb": 125, "use_cpu_initialization": True,
        "transformer_engine": False, "persist_layer_norm": False, "apply_rope_fusion": False,
        "masked_softmax_fusion": False, "gradient_accumulation_fusion": False, "bias_activation_fusion": False,
        "bias_dropout_add_fusion": False, "get_attention_mask_from_fusion": False, "sequence_parallel": False,
        "apply_query_key_layer_scaling": False, "native_amp_init_scale": 1, "hysteresis": 2, "fp32_residual_connection": False,
        "fp16_lm_cross_entropy": False, "onnx_safe": False, "gradient_as_bucket_view": True,
        "activations_checkpoint_granularity": None, "activations_checkpoint_method": None,
        "activations_checkpoint_num_layers": None, "activations_checkpoint_layers_per_pipeline": None,
        "num_micro_batches_with_partial_activation_checkpoints": None, "dist_ckpt_format": "torch_dist",
        "resume_from_checkpoint": None, "rampup_batch_size": None, "apex_transformer_log_level": 30,
        "tokenizer": {"library": "huggingface", "type": tokenizer, "use_fast": True, "model": None, "vocab_file": None,
                      "merge_file": None, "delimiter": None, "sentencepiece_legacy": False},
        "nsys_profile": {"enabled": False},
        "data": {"data_impl": "jsonl", "splits_string": None, "seq_length": 32, "skip_warmup": True, "num_workers": 0,
                 "reset_position_ids": False, "reset_attention_mask": False, "eod_mask_loss": False,
                 "index_mapping_dir": None, "data_prefix": None},
        "optim": {"name": "cpu_adam", "lr": 1e-3, "weight_decay": 0.0, "betas": [0.9, 0.98],
                  "sched": {"name": "CosineAnnealing", "warmup_steps": 0, "constant_steps": 100000, "min_lr": 1e-3}},
        "peft": {"peft_scheme": "none", "restore_from_path": None},
        "reinforce": {
            "rollout_micro_batch_size": 2, "num_rollout_samples": 4, "forward_micro_batch_size": 2,
            "val_rollout_micro_batch_size": 2, "num_val_samples": 4, "offload_adam_states": False,
            "sampling_params": {"use_greedy": False, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "add_BOS": False,
                                "repetition_penalty": 1.0, "all_probs": False, "compute_logprob": False,
                                "end_strings": ["<eos>"]},
            "length_params": {"max_length": 8, "min_length": 1},
            "trt_llm": {"enable": False},
        },
    }  # fmt: skip
    reinforce = {
        "max_epochs": 1, "max_steps": -1, "val_check_interval": 1, "save_interval": 1, "gradient_clip_val": 1.0,
        "initial_policy_kl_penalty": 0.0, "use_absolute_kl": True, "num_rollouts_per_prompt": 2,
        "rollout_batch_seq_length": None, "trt_llm": {"enable": False, "reshard": False},
        "batch_iterator": {"use_flask": False, "port": 5557}, "model_gbs": "${model.global_batch_size}",
        "model_mbs": "${model.micro_batch_size}", "rlkd": {"objective": {"name": "grpo"}},
    }  # fmt: skip
    trainer = {
        "num_nodes": 1, "devices": devices, "accelerator": "cpu", "precision": 32, "logger": False,
        "enable_checkpointing": False, "use_distributed_sampler": False, "max_time": None, "max_epochs": 1,
        "max_steps": 100000, "reinforce": reinforce,
    }  # fmt: skip
    cfg = OmegaConf.create({"trainer": trainer, "model": model, "exp_manager": {}, "pretrained_checkpoint": {}})
    for key, value in changes.items():
        OmegaConf.update(cfg, key, value)
    return cfg


def build(cfg, cls):
    """A model of `cls` with random weights, process groups made."""
    from nemo_aligner.utils.train_script_utils import init_distributed, resolve_and_create_trainer

    trainer = resolve_and_create_trainer(cfg, "reinforce")
    model = cls(cfg.model, trainer)
    init_distributed(trainer, model, False)
    return trainer, model
