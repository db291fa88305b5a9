"""Settings to Megatron's OptimizerConfig; what needs Transformer Engine is refused without it."""

from types import SimpleNamespace

import pytest
import torch
from megatron.core.optimizer import OptimizerConfig

from rlkd_nemo.config.memory import has_transformer_engine
from rlkd_nemo.config.schema import Optim
from rlkd_nemo.engine.state import optimizer
from rlkd_nemo.errors import ConfigError

AWARE = Optim(
    use_distributed_optimizer=True, use_precision_aware_optimizer=True, exp_avg_dtype="fp8", exp_avg_sq_dtype="bf16"
)
without_transformer_engine = pytest.mark.skipif(has_transformer_engine(), reason="Transformer Engine is installed")


def test_plain_settings_make_a_config():
    settings = optimizer.optimizer_settings(Optim(lr=0.5, betas=[0.7, 0.8]), torch.bfloat16, 0.2)
    config = OptimizerConfig(**settings)
    assert (config.lr, config.adam_beta1, config.adam_beta2, config.clip_grad) == (0.5, 0.7, 0.8, 0.2)
    assert config.bf16 and not config.use_distributed_optimizer and not config.use_precision_aware_optimizer


def test_precision_aware_states_are_mapped():
    settings = optimizer.optimizer_settings(AWARE, torch.bfloat16, 1.0)
    assert settings["use_precision_aware_optimizer"] and settings["use_distributed_optimizer"]
    assert settings["main_params_dtype"] is torch.float32 and settings["store_param_remainders"]
    assert settings["exp_avg_dtype"] is torch.uint8
    assert settings["exp_avg_sq_dtype"] is torch.bfloat16
    half = Optim(use_precision_aware_optimizer=True, main_params_dtype="fp16")
    settings = optimizer.optimizer_settings(half, torch.bfloat16, 1.0)
    assert settings["main_params_dtype"] is torch.float16 and not settings["store_param_remainders"]
    assert settings.keys() <= set(OptimizerConfig.__dataclass_fields__)


@without_transformer_engine
def test_megatron_alone_stumbles_over_the_missing_version():
    with pytest.raises(TypeError, match="NoneType"):
        OptimizerConfig(**optimizer.optimizer_settings(AWARE, torch.bfloat16, 1.0))


@without_transformer_engine
def test_without_transformer_engine_one_sentence_names_the_extra():
    model = SimpleNamespace(config=SimpleNamespace(params_dtype=torch.bfloat16))
    with pytest.raises(ConfigError, match=r"pip install 'rlkd_nemo\[fp8\]'"):
        optimizer.build_optimizer(model, AWARE, gradient_clip_val=1.0, total_updates=1)
