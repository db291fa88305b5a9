"""Which settings a resumed run may find changed."""

import json
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from rlkd_nemo import quickstart
from rlkd_nemo.config.load import load, to_yaml
from rlkd_nemo.config.schema import PromptsTask
from rlkd_nemo.errors import ConfigError
from rlkd_nemo.report.page import template
from rlkd_nemo.run_directory import RunDirectory, changed_settings
from rlkd_nemo.tasks import prompts


def test_settings_that_a_saved_config_does_not_know_had_their_default(tmp_path):
    cfg = load("rlkd_demo")
    saved = OmegaConf.create(to_yaml(cfg))
    del saved.model.rope_scaling, saved.model.qk_layernorm, saved.convert
    OmegaConf.save(saved, tmp_path / "config.yaml")
    assert changed_settings(tmp_path, cfg) == []
    cfg.model.qk_layernorm, cfg.convert.source = True, "elsewhere"
    assert changed_settings(tmp_path, cfg) == ["model.qk_layernorm: False, now True"]


def test_a_resumed_run_may_change_what_only_lays_out_or_spares_memory(tmp_path):
    cfg = load("rlkd_demo")
    OmegaConf.save(OmegaConf.create(to_yaml(cfg)), tmp_path / "config.yaml")
    cfg.model.sequence_parallel, cfg.model.virtual_pipeline_model_parallel_size = True, 2
    cfg.model.activations_checkpoint_granularity, cfg.trainer.rlkd.max_steps = "full", 99
    # A job that is submitted anew with more time, or on other nodes.
    cfg.layout.time_limit, cfg.layout.signal_s, cfg.layout.trainer.cpus_per_task = "01:00:00:00", 900, 8
    cfg.gsrm.prefill.concurrency, cfg.gsrm.evaluation.held_out = 7, 0.5
    assert changed_settings(tmp_path, cfg) == []
    cfg.trainer.rlkd.gradient_clip_val = 0.3  # another run
    (changed,) = changed_settings(tmp_path, cfg)
    assert changed.startswith("trainer.rlkd.gradient_clip_val: ") and changed.endswith("now 0.3")


def test_an_edited_prompt_file_is_other_data(tmp_path):
    def task(lines, **edited):
        rows = [{"problem": f"{n}+1=", "answer": str(n + 1), "teacher_path": "count"} for n in range(lines)]
        rows[7] |= edited
        file = tmp_path / "sums.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return prompts.build(PromptsTask(path=str(file)))

    assert task(60).fingerprint == task(60).fingerprint != task(61).fingerprint
    # Another answer or reference to the same problem is another reward.
    assert len({task(60).fingerprint, task(60, answer="9").fingerprint, task(60, teacher_path="add").fingerprint}) == 3
    run = object.__new__(RunDirectory)
    run.data = task(61).fingerprint
    with pytest.raises(ConfigError, match=f"fingerprint was {task(60).fingerprint}, now it is {run.data}"):
        run._refuse_other_data(tmp_path, {"step": 1, "data": task(60).fingerprint})
    extra = {"step": 1, "data": run.data}
    run._refuse_other_data(tmp_path, extra)
    assert extra == {"step": 1}  # what the trainer gets back is what it gave


def test_the_report_s_template_is_ready_before_the_job_is_told_to_stop(tmp_path):
    template.cache_clear()
    cfg = load("rlkd_demo", [f"exp_manager.exp_dir={tmp_path}", "exp_manager.create_tensorboard_logger=false"])
    run = RunDirectory(tmp_path, cfg, SimpleNamespace(is_main=True), None, total_steps=2, description="a run")
    run.open(0)
    run._close_files()
    assert template.cache_info().currsize == 1


def test_supervised_stages_of_the_quickstart_leave_the_layout_behind():
    cfg = load("quickstart", ["model.context_parallel_size=2", "model.micro_batch_tokens=48"])
    cfg.model.virtual_pipeline_model_parallel_size = 2
    flat = quickstart._flat(cfg)
    assert flat.model.virtual_pipeline_model_parallel_size is None
    assert flat.model.context_parallel_size == 1 and flat.model.micro_batch_tokens == 96  # one rank holds whole rows
    assert flat.model.forward_micro_batch_tokens is None


def test_a_margin_before_an_end_that_there_is_not_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)

    def made(*overrides):
        cfg = load("rlkd_demo", ["exp_manager.stop_margin_s=60", *overrides])
        return RunDirectory(tmp_path, cfg, None, None, total_steps=1, description="")

    with pytest.raises(ConfigError, match=r"exp_manager.stop_margin_s=60.0 .*wanted exp_manager.max_time_per_run"):
        made()
    assert made("exp_manager.max_time_per_run=00:01:00:00").clock.margin_s == 60
    monkeypatch.setenv("SLURM_JOB_END_TIME", "4000000000")
    assert made().clock.margin_s == 60
