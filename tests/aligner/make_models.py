"""A teacher and a worse student as `.nemo` files, their prompts and the reward server's problems, made in seconds.

Usage: torchrun --nproc_per_node 1 make_models.py FOLDER. The task: repeat two words, name the first as the answer. The
teacher has seen it done right; half of what the student has seen names the second word.
"""

import json
import pathlib
import random
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import cpu_shim

# Helpers of a checkpoint's writer import this file again and need none of it.
if __name__ == "__main__":
    cpu_shim.install()

TAGS = ["[Meta-reasoning]", "[Answer]", "<answer>", "</answer>", ":"]
NAMES = [f"w{i}" for i in range(12)]
STEPS, BATCH = 500, 32


def prompt_of(first, second):
    return f"{first} {second} :"


def path_of(first, second, answer):
    return f"[Meta-reasoning] {first} {second} [Answer] {answer} <answer> {answer} </answer>"


def write_data(folder):
    """Prompts for the actor, a quarter held out, each twice, and all as problems for the server."""
    pairs = [(a, b) for a in NAMES for b in NAMES if a != b]
    random.Random(0).shuffle(pairs)
    held_out = pairs[:32]
    for name, part in (("train", pairs[32:]), ("validation", 2 * held_out)):
        lines = [json.dumps({"text": prompt_of(*pair)}) for pair in part]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    problems = [{"problem": prompt_of(a, b), "answer": a, "teacher_path": path_of(a, b, a)} for a, b in pairs]
    (folder / "problems.jsonl").write_text("".join(json.dumps(p) + "\n" for p in problems))
    return pairs


def rows(pairs, tokenizer, right, draw):
    """Token ids [BATCH, length] of demonstrations, the end included."""
    out = []
    for a, b in draw.choices(pairs, k=BATCH):
        answer = a if draw.random() < right else b
        out.append(tokenizer.text_to_ids(f"{prompt_of(a, b)} {path_of(a, b, answer)}") + [tokenizer.eos_id])
    return out


def main(folder):
    import tiny
    import torch

    from rlkd_nemo.aligner import MegatronGPTRLKDActorModel

    tokenizer = tiny.make_tokenizer(folder / "tokenizer", [*TAGS, *NAMES])
    pairs = write_data(folder)
    for name, right in (("teacher", 1.0), ("student", 0.5)):
        cfg = tiny.config(tokenizer)
        cfg.model.hidden_size, cfg.model.ffn_hidden_size = 48, 96
        _, model = tiny.build(cfg, MegatronGPTRLKDActorModel)
        draw = random.Random(1)
        optimizer = torch.optim.AdamW(model.model.parameters(), lr=3e-3)
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * (1 - step / STEPS)
            tokens = torch.tensor(rows(pairs, model.tokenizer, right, draw))
            attention, _, positions = model.get_ltor_masks_and_position_ids(tokens)
            logits = model.model(tokens, positions, attention, labels=None)[:, 2:-1]
            loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 3:].reshape(-1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"{name}: cross-entropy {loss.item():.4f} nats a token", flush=True)
        model.save_to(str(folder / f"{name}.nemo"))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
