"""The plugin's loss and gradients in one layout against the Megatron-Core path's (`reference_ranks.py`).

Usage: parity_ranks.py TP PP DP TOKENIZER REFERENCE.pt, by the Python that has NeMo-Aligner.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import cpu_shim

cpu_shim.install()

import tiny
import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from nemo_aligner.utils.utils import configure_batch_sizes

from rlkd_nemo.aligner import MegatronGPTRLKDActorModel
from rlkd_nemo.aligner.rollouts import response_mask, score_rows, update_share
from rlkd_nemo.config.aligner import AlignerRlkd
from rlkd_nemo.config.objectives import GRPO, KDRL, TRRD
from rlkd_nemo.training.step import bind

OBJECTIVES = {"grpo": GRPO(reference_kl=0.05), "kdrl": KDRL(beta=0.2), "trrd": TRRD()}


def whole_name(name, config):
    """The name in the whole model of a parameter of this pipeline stage."""
    name = name.removeprefix("module.")
    if name.startswith("decoder.layers."):
        _, _, number, rest = name.split(".", 3)
        offset = mpu.get_pipeline_model_parallel_rank() * config.num_layers // config.pipeline_model_parallel_size
        return f"decoder.layers.{int(number) + offset}.{rest}"
    return name


def cut(full, name, parameter):
    size, rank = mpu.get_tensor_model_parallel_world_size(), mpu.get_tensor_model_parallel_rank()
    if not getattr(parameter, "tensor_model_parallel", False):
        return full
    if name.endswith("linear_fc1.weight"):  # gate and up are cut apart, then stacked
        return torch.cat([half.chunk(size, 0)[rank] for half in full.chunk(2, 0)])
    return full.chunk(size, parameter.partition_dim)[rank]


def padded(rows, offset, width):
    """Per-token values of responses at their columns of [rows, S-1]."""
    out = torch.zeros(len(rows), width)
    for row, (values, start) in enumerate(zip(rows, offset)):
        out[row, start - 1 : start - 1 + len(values)] = values
    return out


def batch_of(saved, objective, dp_rank, dp_size):
    """This data-parallel rank's rows of the update, as the trainer makes them."""
    lengths = torch.tensor([len(p) for p in saved["prompts"]])
    ends = lengths + torch.tensor([len(r) for r in saved["responses"]])
    width = int(ends.max()) + 2  # padding beyond the longest must not count
    tokens = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, (prompt, response) in enumerate(zip(saved["prompts"], saved["responses"])):
        tokens[row, : len(prompt) + len(response)] = torch.tensor(prompt + response)
    mask = response_mask(lengths, ends, width)
    everything = {"response_tokens": tokens, "teacher_mask": torch.ones_like(mask)}
    for key in ("logprobs", "teacher_logprobs", "ref_logprobs"):
        everything[key] = padded(saved[key], lengths.tolist(), width - 1)
    everything |= score_rows(
        saved["rewards"].float(), saved["groups"], torch.ones(len(lengths), dtype=torch.bool), mask,
        per_update=len(lengths), settings=AlignerRlkd(), objective=objective, max_new_tokens=8,
    )  # fmt: skip
    everything.pop("valid")
    rows = update_share(saved["groups"], len(lengths), dp_rank, dp_size)
    return {key: value[rows] for key, value in everything.items()}, rows


def main(tp, pp, dp, tokenizer, path):
    saved = torch.load(path, weights_only=False)
    cfg = tiny.config(tokenizer, tp=tp, pp=pp, devices=tp * pp * dp)
    cfg.model.reinforce.sampling_params.temperature = saved["temperature"]
    _, model = tiny.build(cfg, MegatronGPTRLKDActorModel)
    config = model.model.config
    dp_rank = mpu.get_data_parallel_rank()
    parameters = {whole_name(name, config): p for name, p in model.model.named_parameters()}
    assert dp == mpu.get_data_parallel_world_size()

    def load():
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(cut(saved["weights"][name], name, parameter))

    load()
    batch, rows = batch_of(saved, GRPO(), dp_rank, dp)
    model.prepare_for_inference()
    for size in (1, 2):
        log_probs = model.get_inference_log_probs(batch["response_tokens"], forward_micro_batch_size=size)
        for at, row in enumerate(rows.tolist()):
            start = len(saved["prompts"][row]) - 1
            got = log_probs[at, start : start + len(saved["now"][row])]
            assert float((got - saved["now"][row]).abs().max()) < 2e-5, (size, row)
    model.finish_inference()

    worst = torch.zeros(3, dtype=torch.float64)
    for micro in (1, 2):
        model.cfg.micro_batch_size = micro
        configure_batch_sizes(mbs=micro, gbs=8, dp=dp)
        for name, objective in OBJECTIVES.items():
            load()
            batch, _ = batch_of(saved, objective, dp_rank, dp)
            for step, (want_loss, want, want_metrics) in enumerate(saved["steps"][name]):
                model.set_objective(bind(name, objective, step))
                for parameter in parameters.values():
                    parameter.grad = None
                model.prepare_for_training_step()
                loss, metrics = model.get_loss_and_metrics(batch, forward_only=False)
                model.finish_training_step()
                errors = [abs(loss - want_loss) / abs(want_loss)]
                assert metrics.keys() - {"loss"} == want_metrics.keys()
                errors.append(max(abs(metrics[k] - v) / max(abs(v), 1) for k, v in want_metrics.items()))
                gradient = 0.0
                for key, parameter in parameters.items():
                    error = (parameter.grad - cut(want[key], key, parameter)).abs().max() / want[key].abs().max()
                    gradient = max(gradient, float(error))
                worst = torch.maximum(worst, torch.tensor([*errors, gradient], dtype=torch.float64))
                with torch.no_grad():
                    for parameter in parameters.values():
                        parameter -= saved["rate"] * parameter.grad
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    if dist.get_rank() == 0:
        print("WORST loss {:.3e} metric {:.3e} gradient {:.3e}".format(*worst.tolist()), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), *sys.argv[4:6])
