"""Tiny random models of every family, made by transformers, with the log-probs that transformers gives."""

import torch
import transformers

VOCAB, CONTEXT = 61, 48  # padded to 64 on one rank
IDS = [(7 * place * place + 5 * place + 3) % VOCAB for place in range(40)]

_SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.15,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 16}
DEFAULT = {"rope_type": "default", "rope_theta": 1e6}
# name: transformers' class and what its config adds. Each family once, and what varies inside families spread over them.
MODELS = {
    "llama": ("Llama", {"rope_parameters": LLAMA3, "rms_norm_eps": 1e-5}),
    "llama_tied": ("Llama", {"rope_parameters": DEFAULT, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {"rope_parameters": DEFAULT, "head_dim": 16, "sliding_window": CONTEXT}),
    "qwen2": ("Qwen2", {"rope_parameters": YARN, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"rope_parameters": {**YARN, "attention_factor": 1.3}, "head_dim": 16}),
}


def make(name, directory, dtype=torch.float32, **sizes):
    """Save the model in several shards, with `sizes` in place of the usual; its log-probs of IDS[1:], float64 [39]."""
    family, extra = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**{**_SIZES, **extra, **sizes})
    torch.manual_seed(1)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms start at 1 and biases at 0, where leaving them out would show in nothing.
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.to(dtype).save_pretrained(directory, max_shard_size="20KB")
    return log_probs(directory)


@torch.no_grad()
def log_probs(directory):
    """What transformers makes of a directory."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    logits = model.eval()(torch.tensor([IDS])).logits[0, :-1].double()
    return logits.log_softmax(-1).gather(-1, torch.tensor(IDS[1:])[:, None])[:, 0]
