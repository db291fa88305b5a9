"""A model that has learnt a few conversations by heart: its greedy replies are known, whatever server it stands behind."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END, TURN = "<|end|>", "<|turn|>"


def memorise(conversations: list[tuple[list[dict], str]], directory: Path, most_steps: int = 600) -> None:
    """Train on (messages, reply) until every token of every reply is the likeliest by far, and save in Hugging Face's format."""
    torch.manual_seed(0)
    tokenizer = _tokenizer(
        [m["content"] for messages, _ in conversations for m in messages] + [r for _, r in conversations]
    )
    batch = [_encoded(tokenizer, messages, reply) for messages, reply in conversations]
    longest = max(len(ids) for ids, _ in batch)
    ids = torch.full((len(batch), longest), tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    for row, (tokens, prompt) in enumerate(batch):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, prompt : len(tokens)] = torch.tensor(tokens[prompt:])
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=4, max_position_embeddings=2048, **sizes)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    worst = 1.0
    for _ in range(most_steps):
        logits = model(input_ids=ids).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="none"
        )
        worst = float(losses.detach().max())
        if worst < 0.05:
            break
        optimizer.zero_grad()
        (losses.sum() / (labels[:, 1:] != -100).sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert worst < 0.3, f"not learnt by heart: the worst token has {worst:.2f} nats"
    model.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[END, TURN], initial_alphabet=alphabet)
    raw.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=END, pad_token=END)
    tokenizer.chat_template = (
        "{% for m in messages %}" + TURN + "{{ m['role'] }}: {{ m['content'] }}{% endfor %}" + TURN + "assistant: "
    )
    return tokenizer


def _encoded(tokenizer: PreTrainedTokenizerFast, messages: list[dict], reply: str) -> tuple[list[int], int]:
    """Token ids of the whole, and how many of them are the prompt."""
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    after = tokenizer(reply + END, add_special_tokens=False)["input_ids"]
    return before + after, len(before)
