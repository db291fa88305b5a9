import json
import subprocess
import sys

import pytest

from rlkd_nemo.config.schema import ExpManager
from rlkd_nemo.errors import ConfigError, InputError
from rlkd_nemo.report.metrics import NON_FINITE, MetricsLog, read

NO_MIRRORS = ExpManager(create_tensorboard_logger=False)


def write(run_dir, steps, value=0.0, start_step=0):
    with MetricsLog(run_dir, NO_MIRRORS, start_step=start_step) as metrics:
        for step in steps:
            metrics.log(step, {"loss/total": value + step})


def values(run_dir):
    return {line["step"]: line["loss/total"] for line in read(run_dir)}


def test_a_line_is_on_disk_as_soon_as_it_is_logged(tmp_path):
    metrics = MetricsLog(tmp_path)
    metrics.log(0, {"validation/accuracy": 0.25})
    assert read(tmp_path)[0]["validation/accuracy"] == 0.25
    metrics.close()
    metrics.close()


def test_resume_replaces_the_steps_that_run_again(tmp_path):
    write(tmp_path, range(6))
    write(tmp_path, range(4, 6), value=100.0, start_step=3)
    assert values(tmp_path) == {0: 0, 1: 1, 2: 2, 3: 3, 4: 104, 5: 105}


def test_a_run_that_starts_over_keeps_nothing(tmp_path):
    # Step 0 (validation before training) is logged again as well, so its old line must go.
    write(tmp_path, range(3))
    write(tmp_path, range(2), value=50.0)
    assert [line["loss/total"] for line in read(tmp_path)] == [50, 51]


@pytest.mark.parametrize("torn", ['{"step": 3, "loss/to', '{"step": 3, "time": 0, "loss/total": 9}'])
def test_a_last_line_without_end_is_dropped(tmp_path, torn, caplog):
    # The second looks whole, but its newline is missing: what follows would be glued to it.
    write(tmp_path, range(3))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    assert values(tmp_path) == {0: 0, 1: 1, 2: 2}
    assert "the last line has no end" in caplog.text
    write(tmp_path, [3], start_step=2)
    assert values(tmp_path) == {0: 0, 1: 1, 2: 2, 3: 3}


def test_a_broken_line_in_the_middle_is_an_error_with_its_place(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\noops\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl:2: not a line of metrics"):
        read(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n')
    with pytest.raises(InputError, match="integer `step`"):
        MetricsLog(tmp_path)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path)


def test_numbers_that_are_not_finite_become_null_and_are_counted(tmp_path, caplog):
    with MetricsLog(tmp_path) as metrics:
        metrics.log(1, {"a/x": float("nan"), "a/y": float("-inf"), "a/z": 1.0})
        metrics.log(2, {"a/x": float("nan")})
        metrics.log(3, {"a/x": 2.0})

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (lines[0]["a/x"], lines[0]["a/y"], lines[0]["a/z"], lines[0][NON_FINITE]) == (None, None, 1.0, 2)
    assert lines[1][NON_FINITE] == 1 and NON_FINITE not in lines[2]
    assert caplog.text.count("a/x") == 1  # said once a name


def test_steps_must_increase_and_two_names_are_taken(tmp_path):
    with MetricsLog(tmp_path, start_step=4) as metrics:
        with pytest.raises(ValueError, match="step 4 was logged after step 4"):
            metrics.log(4, {})
        with pytest.raises(ValueError, match=r"\['time'\] are taken"):
            metrics.log(5, {"time": 1.0})


def test_tensorboard_gets_the_finite_scalars_and_forgets_replayed_steps(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path, ExpManager()) as metrics:
        for step in range(1, 5):
            metrics.log(step, {"a/x": float(step), "a/broken": float("nan")})
    with MetricsLog(tmp_path, ExpManager(), start_step=2) as metrics:
        metrics.log(3, {"a/x": 30.0})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("a/x")] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert "a/broken" not in events.Tags()["scalars"]


def test_mirrors_load_no_torch_and_none_is_loaded_unasked(tmp_path):
    code = f"""
import sys
from rlkd_nemo.config.schema import ExpManager
from rlkd_nemo.report import audit, metrics, page, progress, summary
assert not {{"torch", "tensorboard", "wandb"}} & sys.modules.keys()
metrics.MetricsLog({str(tmp_path)!r}, ExpManager()).log(1, {{"a/x": 1.0}})
assert "tensorboard" in sys.modules and not {{"torch", "tensorflow", "wandb"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


@pytest.mark.parametrize(
    ("package", "settings"),
    [
        ("wandb", ExpManager(create_tensorboard_logger=False, create_wandb_logger=True)),
        ("tensorboard", ExpManager()),
    ],
)
def test_a_missing_package_is_one_clear_sentence(tmp_path, monkeypatch, package, settings):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"create_{package}_logger=true needs the package {package}.*to false"):
        MetricsLog(tmp_path, settings)


def test_wandb_offline_writes_a_run_and_a_resumed_process_keeps_its_id(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the optional package wandb is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    settings = ExpManager(create_tensorboard_logger=False, create_wandb_logger=True)
    for start in (0, 1):
        with MetricsLog(tmp_path, settings, start_step=start) as metrics:
            metrics.log(start + 1, {"a/x": 1.0})
    known = (tmp_path / "wandb_id.txt").read_text()
    runs = list((tmp_path / "wandb").glob("offline-run-*"))
    assert runs and all(run.name.endswith(known) for run in runs)
