"""A frozen second model in NeMo-Aligner's own process: teacher of log-probs, in the student's layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlkd_nemo.aligner.compat import check

check()

import torch
from omegaconf import OmegaConf, open_dict

from rlkd_nemo.aligner.actor import MegatronGPTRLKDActorModel
from rlkd_nemo.aligner.checkpoint import load_model_config
from rlkd_nemo.errors import CheckpointError


class FrozenTeacher:
    """Implements `interfaces.Teacher` over a model of the actor's class that is never trained.

    All ranks call together; each passes its own data-parallel share, the same on every rank of a model-parallel group.
    """

    def __init__(self, model: MegatronGPTRLKDActorModel) -> None:
        self.model = model
        model.freeze()
        # It has no optimizer whose states could leave the device, and it samples nothing.
        model.to_offload_adam_states = model.use_trtllm_generation = False

    def log_probs(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """For each pair, float32 [len(response)], nats, at the sampling temperature."""
        width = max(len(p) + len(r) for p, r in zip(prompts, responses))
        tokens = torch.full((len(prompts), width), self.model.tokenizer.eos_id, dtype=torch.long)
        for row, (prompt, response) in enumerate(zip(prompts, responses)):
            tokens[row, : len(prompt) + len(response)] = torch.tensor([*prompt, *response])
        device = next(self.model.parameters()).device
        # eval, and for recomputation and sequence parallelism what the parent sets for inference
        self.model.prepare_for_inference()
        values = self.model.get_inference_log_probs(tokens.to(device))
        self.model.finish_inference()
        return [
            values[row, len(p) - 1 : len(p) - 1 + len(r)].float().cpu()
            for row, (p, r) in enumerate(zip(prompts, responses))
        ]


def load_teacher(path: str, cfg: Any, trainer: Any, student: MegatronGPTRLKDActorModel) -> FrozenTeacher:
    """The teacher of a `.nemo` checkpoint; its architecture is the checkpoint's own, the rest the student's settings.

    Args: cfg: the student's model section, resolved; the student is on its device by then.
    Raises: CheckpointError when its tokenizer is not the student's, or as `checkpoint.load_model_config`.
    """
    from nemo_aligner.utils.utils import load_from_nemo

    own = {key: cfg[key] for key in _LAYOUT if key in cfg}
    merged = load_model_config(path, OmegaConf.create(own))
    with open_dict(merged):
        merged.reinforce.trt_llm = {"enable": False}
    model = load_from_nemo(MegatronGPTRLKDActorModel, merged, trainer, strict=True, restore_path=path)
    ours, theirs = (_pieces(m.tokenizer) for m in (student, model))
    if ours != theirs:
        first = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
        raise CheckpointError(
            f"{path}: the teacher's tokenizer has {len(theirs)} ids, the student's {len(ours)}, and id {first} is the first "
            "that differs; log-probs of tokens need the same tokenizer"
        )
    if merged.get("transformer_engine", False):
        model.setup_transformer_engine_tp_groups()
    return FrozenTeacher(model.to(next(student.parameters()).device))


def _pieces(tokenizer: Any) -> list[str]:
    return list(tokenizer.ids_to_tokens(list(range(tokenizer.vocab_size))))


# What of the student's section is about the run and not about an architecture.
_LAYOUT = (
    "reinforce", "micro_batch_size", "global_batch_size", "megatron_amp_O2", "precision", "seed", "sequence_parallel",
    "tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size", "data", "peft", "optim",
)  # fmt: skip
