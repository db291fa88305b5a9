"""The Megatron-Core engine: the only room that imports megatron (apart from the NeMo-Aligner plugin)."""

import warnings

# What Megatron and torch say once a rank and an import, where Transformer Engine and Apex are absent or a newer torch
# is in use; the engine chooses its own specs and none of it is the user's to change. By message: others still show.
_HARMLESS = (
    "Transformer Engine",
    "Apex is not installed",
    ".*TE_DPA",
    ".*multi_tensor",
    "Optimizer CPU offload",
    "full scope is deprecated",
    "When using async grad allreduce",
    "`load_state_dict` is deprecated",
    "Please use DTensor instead",
    "Please use `StaticInferenceContext`",
    "CPU RNG state changed",
    "`torch.jit.script` is deprecated",
)
for _message in _HARMLESS:
    warnings.filterwarnings("ignore", message=_message)
