"""The Megatron-Core path's loss and gradients (megatron-core 0.16), on one rank, for the plugin to compare with.

Usage: reference_ranks.py OUT.pt, by the Python of the main environment. Three steps of plain gradient descent from known
weights, for each objective, on one batch of rollouts.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "parity"))

from rlkd_nemo.engine.ranks import close_ranks, init_ranks

import torch
from known_weights import fill

from rlkd_nemo.config.objectives import GRPO, KDRL, TRRD
from rlkd_nemo.config.schema import Model, Overlong
from rlkd_nemo.engine.actor import RLKDActor
from rlkd_nemo.training import step as steps
from rlkd_nemo.types import Component, Failure, Problem, Rollout, Score

VOCAB, GROUPS, GROUP, STEPS, RATE, TEMPERATURE = 29, 4, 2, 3, 0.05, 0.8
OBJECTIVES = {"grpo": GRPO(reference_kl=0.05), "kdrl": KDRL(beta=0.2), "trrd": TRRD()}


def experience():
    """Four groups of two, ragged; one row was failed by the system."""
    draw = torch.Generator().manual_seed(3)
    rollouts, scores = [], []
    for group in range(GROUPS):
        for sample in range(GROUP):
            prompt = torch.randint(2, VOCAB, (3 + group,), generator=draw).tolist()
            response = torch.randint(2, VOCAB, (2 + (5 * group + 3 * sample) % 7,), generator=draw).tolist()
            rollouts.append(
                Rollout(Problem(str(group), "", ""), group, sample, prompt, response, [], "", False, 0, 1.0)
            )
            failed = (group, sample) == (1, 0)
            part = Component(None, Failure.TIMEOUT) if failed else Component(float(sample) + 0.25 * group)
            scores.append(Score({"outcome": part}, part.value))
    return steps.advantage(rollouts, scores, std="population", overlong=Overlong(), max_new_tokens=8, scale=1.0)


def main(path):
    ranks = init_ranks(1, 1)
    settings = Model(
        num_layers=2, hidden_size=32, ffn_hidden_size=48, num_attention_heads=4, num_query_groups=2, micro_batch_size=3,
        encoder_seq_length=32, tensor_model_parallel_size=1, forward_micro_batch_size=8,
    )  # fmt: skip
    actor = RLKDActor(settings, VOCAB, ranks, pad_id=0)
    fill(actor.bare_model, ranks)
    start = {name: p.detach().clone() for name, p in actor.hidden_model.named_parameters()}
    exp = experience()
    prompts, responses = [r.prompt_ids for r in exp.rollouts], [r.response_ids for r in exp.rollouts]
    now, _ = actor.get_inference_log_probs(prompts, responses, temperature=TEMPERATURE)
    draw = torch.Generator().manual_seed(4)
    exp.old_log_probs = [row + 0.2 * torch.randn(len(row), generator=draw) for row in now]
    exp.teacher_log_probs = [row + torch.randn(len(row), generator=draw) for row in now]
    exp.ref_log_probs = [row + 0.3 * torch.randn(len(row), generator=draw) for row in now]
    saved = {
        "weights": start, "prompts": prompts, "responses": responses, "rewards": exp.rewards, "groups": exp.groups,
        "now": now, "logprobs": exp.old_log_probs, "teacher_logprobs": exp.teacher_log_probs,
        "ref_logprobs": exp.ref_log_probs, "rate": RATE, "temperature": TEMPERATURE, "steps": {},
    }  # fmt: skip
    rows = steps.updates(exp, 1)[0]
    for name, objective in OBJECTIVES.items():
        with torch.no_grad():
            for key, parameter in actor.hidden_model.named_parameters():
                parameter.copy_(start[key])
        saved["steps"][name] = []
        batch = steps.update_batch(exp, rows, objective, max_new_tokens=8, drop_teacher_at=None)
        for step in range(STEPS):
            actor.prepare_for_training_step()
            loss, metrics = actor.get_loss_and_metrics(
                batch, steps.bind(name, objective, step), temperature=TEMPERATURE
            )
            gradients = {key: p.main_grad.clone() for key, p in actor.hidden_model.named_parameters()}
            metrics.pop("entropy")
            saved["steps"][name].append((loss, gradients, metrics))
            with torch.no_grad():
                for key, parameter in actor.hidden_model.named_parameters():
                    parameter -= RATE * gradients[key]
    torch.save(saved, path)
    close_ranks()


if __name__ == "__main__":
    main(sys.argv[1])
