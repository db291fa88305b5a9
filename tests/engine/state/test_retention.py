"""Which checkpoints are found, which is best, which are removed; and reading `meta.json`. No ranks needed."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest

from rlkd_nemo.config.schema import Model, RopeScaling
from rlkd_nemo.engine.state import checkpoint as saving
from rlkd_nemo.engine.state.meta import (
    architecture_of,
    check_model,
    layout_of,
    model_from_checkpoint,
    pieces_hash,
    read_meta,
)
from rlkd_nemo.engine.state.retention import best, checkpoints, clean, latest, prune
from rlkd_nemo.errors import CheckpointError, ConfigError


@pytest.fixture
def run(tmp_path):
    """Steps 2 to 12 with metrics 0.1, 0.7, nan, 0.7, none, 0.3; one unfinished save; one stranger."""
    metrics = {2: 0.1, 4: 0.7, 6: float("nan"), 8: 0.7, 10: None, 12: 0.3}
    for step, metric in metrics.items():
        folder = tmp_path / f"step-{step:06d}"
        folder.mkdir()
        meta = {
            "format_version": 1,
            "step": step,
            "metric": metric,
            "architecture": architecture_of(Model(num_layers=7)),
        }
        (folder / "meta.json").write_text(json.dumps(meta))
    (tmp_path / "step-000014.tmp").mkdir()
    (tmp_path / "step-000014.tmp" / "meta.json").write_text("{}")
    (tmp_path / "step-000016").mkdir()  # no meta: not one of ours
    return tmp_path


def steps(paths):
    return [int(path.name.removeprefix("step-")) for path in paths]


def test_latest_is_the_newest_complete_one(run):
    assert steps(checkpoints(run)) == [2, 4, 6, 8, 10, 12]
    assert latest(run).name == "step-000012"


def test_steps_are_numbers_not_texts(tmp_path):
    for name in ("step-999999", "step-1000000"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "meta.json").write_text("{}")
    assert latest(tmp_path).name == "step-1000000"


def test_nothing_there(tmp_path):
    assert latest(tmp_path) is None
    assert latest(tmp_path / "absent") is None
    assert best(tmp_path) is None


def test_best_is_the_newer_of_equals_and_never_a_nan(run):
    assert best(run).name == "step-000008"
    assert best(run, "min").name == "step-000002"


@pytest.mark.parametrize(
    ("last", "top", "mode", "left"),
    [
        (1, 1, "max", [8, 12]),
        (2, 1, "max", [8, 10, 12]),
        (1, 2, "max", [4, 8, 12]),
        (1, 1, "min", [2, 12]),
        (0, 0, "max", [8, 12]),  # newest and best stay, whatever is asked
        (9, 9, "max", [2, 4, 6, 8, 10, 12]),
    ],
)
def test_prune_keeps_the_newest_and_the_best(run, last, top, mode, left):
    removed = prune(run, last, top, mode)
    assert steps(checkpoints(run)) == left
    assert sorted(steps(removed) + left) == [2, 4, 6, 8, 10, 12]
    assert not list(run.glob("*removed*"))
    assert (run / "step-000014.tmp").is_dir()  # perhaps being written
    assert (run / "step-000016").is_dir()


def test_a_removal_cut_short_is_no_checkpoint(run, monkeypatch):
    def dies(path, **options):
        if "removed" in path.name and path.is_dir():
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", dies)
    with pytest.raises(KeyboardInterrupt):
        prune(run, 1, 1)
    monkeypatch.undo()
    assert steps(checkpoints(run)) == [4, 6, 8, 10, 12]
    assert [path.name for path in run.glob("*removed*")] == ["step-000002.removed.tmp"]
    assert sorted(path.name for path in clean(run)) == ["step-000002.removed.tmp", "step-000014.tmp"]
    assert not list(run.glob("*.tmp"))


def test_an_unknown_mode_is_refused(run):
    with pytest.raises(ConfigError, match=r"mode='lowest' is unknown; choose max or min"):
        prune(run, 1, 1, "lowest")


def test_an_unfinished_save_is_refused_by_name(run):
    with pytest.raises(CheckpointError, match=r"step-000014.tmp is unfinished.*step-000012"):
        read_meta(run / "step-000014.tmp")


def test_an_unreadable_or_newer_meta_is_refused(run):
    (run / "step-000002" / "meta.json").write_text("not json")
    with pytest.raises(CheckpointError, match="meta.json cannot be read"):
        read_meta(run / "step-000002")
    (run / "step-000004" / "meta.json").write_text('{"format_version": 2}')
    with pytest.raises(CheckpointError, match="has format 2, wanted 1"):
        read_meta(run / "step-000004")


def test_a_model_takes_architecture_from_the_checkpoint_and_layout_from_the_config(run):
    current = Model(num_layers=2, tensor_model_parallel_size=4, micro_batch_size=5, encoder_seq_length=512)
    model = model_from_checkpoint(run / "step-000002", current)
    assert model.num_layers == 7
    assert (model.tensor_model_parallel_size, model.micro_batch_size, model.encoder_seq_length) == (4, 5, 512)
    assert model.kv_channels == 24  # 96 / 4


def test_the_layout_names_the_context_axis_only_where_there_is_one():
    # a checkpoint from before there was one has the same layout as a run without it
    assert layout_of(Model(tensor_model_parallel_size=2), 8) == {"tensor": 2, "pipeline": 1, "data": 4}
    with_context = layout_of(Model(tensor_model_parallel_size=2, context_parallel_size=2), 8)
    assert with_context == {"tensor": 2, "pipeline": 1, "data": 2, "context": 2}


def test_an_older_checkpoint_has_the_defaults_of_what_was_added_since(run):
    file = run / "step-000002" / "meta.json"
    meta = json.loads(file.read_text())
    for name in ("add_qkv_bias", "qk_layernorm", "rope_scaling"):
        del meta["architecture"][name]
    file.write_text(json.dumps(meta))
    current = Model(add_qkv_bias=True, qk_layernorm=True, rope_scaling=RopeScaling("yarn"))
    model = model_from_checkpoint(run / "step-000002", current)
    assert (model.add_qkv_bias, model.qk_layernorm, model.rope_scaling) == (False, False, RopeScaling())
    meta = read_meta(run / "step-000002") | {"vocabulary": {"size": 5}}
    check_model(run, meta, model, 5)
    with pytest.raises(CheckpointError, match="qk_layernorm False, wanted True"):
        check_model(run, meta, dataclasses.replace(model, qk_layernorm=True), 5)


def test_pieces_hash_sees_order_and_boundaries():
    assert pieces_hash(["ab", "c"]) == pieces_hash(["ab", "c"])
    assert len({pieces_hash(pieces) for pieces in (["ab", "c"], ["c", "ab"], ["a", "bc"])}) == 3


def test_looking_at_checkpoints_needs_no_torch():
    code = "import sys, rlkd_nemo.engine.state.meta; sys.exit('torch' in sys.modules or 'megatron' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_kill_while_a_replaced_checkpoint_is_removed_costs_neither(tmp_path, monkeypatch):
    for name, text in (("step-000004", "old"), ("step-000004.tmp", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").write_text(text)

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(saving, "_is_main", lambda: True)
    monkeypatch.setattr(shutil, "rmtree", lambda path, ignore_errors=False: ignore_errors or killed(path))
    with pytest.raises(KeyboardInterrupt):
        saving._publish(tmp_path / "step-000004.tmp", tmp_path / "step-000004", "{}")
    assert (latest(tmp_path) / "data").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000004", "step-000004.removed.tmp"]
