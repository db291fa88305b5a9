"""What NeMo-Aligner 0.7.0 finds only on a machine with GPUs, stood in for on CPU ranks; nothing of NeMo is copied.

Import it and call `install()` before anything of NeMo. It stands in for CUDA (tensors stay on the host), for TensorRT-LLM
(importable, never usable), for the parts of Apex that training calls (norms, clipping) and for Transformer Engine's layers
(megatron's own are taken). It changes whole libraries and belongs into processes of their own.
"""

import importlib.machinery
import os
import sys
import types

os.environ.update(
    PYTORCH_JIT="0",  # TorchScript cannot read wrapped factories
    TORCHDYNAMO_DISABLE="1",
    NVIDIA_PYTORCH_VERSION="20.01",  # NeMo parses it; an old one switches fused kernels off
    TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1",
    HF_HUB_OFFLINE="1",
    CUDA_VISIBLE_DEVICES="",
)

import torch

CPU = torch.device("cpu")
FACTORIES = ("tensor", "as_tensor", "zeros", "ones", "empty", "full", "arange", "eye", "rand", "randn", "randint", "randperm",
             "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like")  # fmt: skip


def install():
    """Patch torch, then NeMo as it is imported here; once."""
    if "tensorrt_llm" in sys.modules:
        return
    if torch.cuda.is_available():
        raise RuntimeError("the CPU stand-ins are for machines without a GPU")
    _torch()
    _tensorrt_llm()
    _nemo()


def _on_host(function):
    def wrapped(*args, **kwargs):
        device = kwargs.get("device")
        if isinstance(device, int) or str(device).startswith("cuda"):
            kwargs["device"] = CPU
        kwargs.pop("pin_memory", None)
        return function(*args, **kwargs)

    return wrapped


def _torch():
    for name in FACTORIES:
        setattr(torch, name, _on_host(getattr(torch, name)))
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self
    torch.Tensor.pin_memory = lambda self, *args: self
    to = torch.Tensor.to

    def tensor_to(self, *args, **kwargs):
        args = tuple(CPU if isinstance(a, (str, torch.device)) and str(a).startswith("cuda") else a for a in args)
        return _on_host(to)(self, *args, **kwargs)

    torch.Tensor.to = tensor_to
    cuda = torch.cuda
    cuda.current_device = lambda: CPU
    for name in ("Long", "Float", "Half", "BFloat16", "Int", "Byte", "Bool", "Double"):
        setattr(cuda, f"{name}Tensor", getattr(torch, f"{name}Tensor"))
    for name in ("set_device", "synchronize", "empty_cache", "manual_seed", "manual_seed_all"):
        setattr(cuda, name, lambda *args, **kwargs: None)
    cuda.Stream = cuda.default_stream = lambda *args, **kwargs: types.SimpleNamespace()
    cuda.get_rng_state = lambda *args: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *args: torch.set_rng_state(state)
    gather = torch.distributed.all_gather_into_tensor

    def all_gather_into_tensor(output, value, *args, **kwargs):
        # gloo wants one dimension at least
        return gather(output, value.reshape(1) if value.ndim == 0 else value, *args, **kwargs)

    torch.distributed.all_gather_into_tensor = all_gather_into_tensor


def _module(name, **contents):
    module = types.ModuleType(name)
    module.__path__ = []
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    vars(module).update(contents)
    sys.modules[name] = module


def _tensorrt_llm():
    def refuse(*args, **kwargs):
        raise RuntimeError("TensorRT-LLM has no CPU build")

    _module("tensorrt_llm")
    _module("nemo.export.tensorrt_llm", TensorRTLLM=refuse)
    _module("nemo.export.trt_llm")
    _module("nemo.export.trt_llm.tensorrt_llm_run")
    _module("nemo.export.trt_llm.nemo_ckpt_loader")
    _module("nemo.export.trt_llm.nemo_ckpt_loader.nemo_file", build_tokenizer=refuse)
    sys.modules["nemo.export.trt_llm"].tensorrt_llm_run = sys.modules["nemo.export.trt_llm.tensorrt_llm_run"]


class CpuAdam(torch.optim.AdamW):
    """AdamW whose step counter is one number a group: what NeMo's checkpoints can shard."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, **_):
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "amsgrad": False}
        torch.optim.Optimizer.__init__(self, params, defaults)

    def __setstate__(self, state):
        torch.optim.Optimizer.__setstate__(self, state)

    @torch.no_grad()
    def step(self, closure=None):
        """Decoupled weight decay, bias-corrected moments (arXiv:1711.05101)."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            group["step"] = step = group.get("step", 0) + 1
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                state["exp_avg"].lerp_(p.grad, 1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                scale = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
                p.addcdiv_(state["exp_avg"], scale, value=-group["lr"] / (1 - beta1**step))
        return loss


def _nemo():
    from megatron.core.tensor_parallel import random as tp_random
    from megatron.core.tensor_parallel import set_defaults_if_not_set_tensor_model_parallel_attributes as defaults

    tp_random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)

    from nemo.collections.nlp.modules.common.megatron import megatron_utils

    megatron_utils.get_megatron_pretrained_bert_models = list  # reads a name that only Transformer Engine brings
    _adapters()

    from nemo.collections.nlp.models import nlp_model

    nlp_model.get_megatron_pretrained_bert_models = list

    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from nemo.collections.nlp.models.language_modeling import megatron_gpt_model
    from nemo.collections.nlp.modules.common.megatron import build_model, clip_grads, megatron_init, utils
    from nemo.collections.nlp.parts import nlp_overrides
    from nemo.core.classes import ModelPT
    from nemo.core.optim import optimizers

    def specs(*args, **kwargs):
        return get_gpt_layer_local_spec(None, False)

    megatron_gpt_model.get_specs = specs
    ModelPT.cuda = lambda self, *args, **kwargs: self
    seed = megatron_init._set_random_seed

    def set_random_seed(value, *args, **kwargs):
        seed(value, *args, **kwargs)
        tp_random.model_parallel_cuda_manual_seed(value)

    megatron_init._set_random_seed = set_random_seed
    build_model.set_defaults_if_not_set_tensor_model_parallel_attributes = defaults

    class Never:
        """No optimizer is of this class."""

    nlp_overrides.HAVE_APEX = True
    nlp_overrides.MegatronDistributedFusedAdam = Never
    from nemo.core.optim.mcore_optim import McoreDistributedOptimizer

    nlp_overrides.McoreDistributedOptimizer = McoreDistributedOptimizer
    utils.listify_model = lambda model: model if isinstance(model, list) else [model]
    utils.FusedLayerNorm = utils.FastLayerNorm = torch.nn.LayerNorm
    utils.MixedFusedRMSNorm = torch.nn.RMSNorm

    def norm(_, __, tensors, ___):
        return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors[0]])), None

    def scale(_, __, tensors, factor):
        for source, target in zip(*tensors):
            target.copy_(source * factor)

    clip_grads.amp_C = types.SimpleNamespace(multi_tensor_l2norm=norm, multi_tensor_scale=scale)
    clip_grads.multi_tensor_applier = lambda operation, overflow, tensors, *args: operation(0, overflow, tensors, *args)
    optimizers.AVAILABLE_OPTIMIZERS["cpu_adam"] = CpuAdam
    _checkpoint_writer()


def _adapters():
    """LoRA's layers want one function of Transformer Engine, and do without where it is None."""
    name = "megatron.core.extensions.transformer_engine"
    _module(name, SplitAlongDim=None)
    from nemo.collections.nlp.modules.common.megatron.adapters import mcore_mixins

    assert mcore_mixins.SplitAlongDim is None
    del sys.modules[name]  # nobody else may find it


def _checkpoint_writer():
    """megatron-core 0.10 calls torch's writer with the arguments of its day."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async
    from torch.distributed.checkpoint import filesystem

    transforms = filesystem._StorageWriterTransforms()

    def write_item(stream, data, item, storage_key):
        return filesystem._write_item(
            transforms, stream, data, item, storage_key, filesystem.SerializationFormat.TORCH_SAVE
        )

    filesystem_async._write_item = write_item
