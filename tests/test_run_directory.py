"""Which settings a resumed run may find changed."""

from omegaconf import OmegaConf

from rlkd_nemo.config.load import load, to_yaml
from rlkd_nemo.run_directory import changed_settings


def test_settings_that_a_saved_config_does_not_know_had_their_default(tmp_path):
    cfg = load("rlkd_demo")
    saved = OmegaConf.create(to_yaml(cfg))
    del saved.model.rope_scaling, saved.model.qk_layernorm, saved.convert
    OmegaConf.save(saved, tmp_path / "config.yaml")
    assert changed_settings(tmp_path, cfg) == []
    cfg.model.qk_layernorm, cfg.convert.source = True, "elsewhere"
    assert changed_settings(tmp_path, cfg) == ["model.qk_layernorm: False, now True"]
