"""Options of sbatch and srun from the config's layout."""

import pytest

from rlkd_nemo.config.load import load
from rlkd_nemo.errors import ConfigError
from rlkd_nemo.launch.slurm.__main__ import main as command
from rlkd_nemo.launch.slurm.jobs import JOBS, header, only, steps, time_limit

GPUS = [
    "trainer.num_nodes=2", "trainer.devices=8", "layout.trainer.gpus_per_node=8", "layout.trainer.cpus_per_task=12",
    "gsrm=vllm", "layout.gsrm.nodes=1", "layout.gsrm.gpus_per_node=8", "layout.time_limit=01:02:03:04", "layout.signal_s=900",
]  # fmt: skip


def test_a_block_of_options_for_each_component():
    assert header("train", "big", load("rlkd_demo", GPUS)) == [
        "#SBATCH --job-name=big", "#SBATCH --output=%x-%j.log", "#SBATCH --open-mode=append", "#SBATCH --requeue",
        "#SBATCH --signal=B:USR1@900",
        "#SBATCH --time=1-02:03:04", "#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=8", "#SBATCH --cpus-per-task=12",
        "#SBATCH --gpus-per-node=8", "#SBATCH --mem=0",
        "#SBATCH hetjob",
        "#SBATCH --time=1-02:03:04", "#SBATCH --nodes=1", "#SBATCH --ntasks-per-node=1", "#SBATCH --cpus-per-task=8",
        "#SBATCH --gpus-per-node=8", "#SBATCH --mem=0",
    ]  # fmt: skip


def test_the_steps_of_a_training_job():
    services, work = steps("train", load("rlkd_demo", GPUS))
    assert [service.name for service in services] == ["gsrm"]
    assert services[0].options[:4] == ("--het-group=1", "--overlap", "--nodes=1", "--ntasks=1")
    assert (work.name, work.tasks, work.command) == ("trainer", 16, ("examples/train_rlkd.py",))
    assert {"--het-group=0", "--ntasks=16", "--ntasks-per-node=8", "--gpus-per-node=8"} <= set(work.options)


def test_one_component_has_no_groups():
    services, work = steps("train", load("rlkd_demo", []))
    assert services == [] and not any(option.startswith("--het") for option in work.options)
    services, work = steps("train_sft", load("rlkd_demo", GPUS))  # scores nothing
    assert services == [] and work.tasks == 16
    services, work = steps("serve_gsrm", load("rlkd_demo", GPUS))
    assert services == [] and work.name == "gsrm" and work.command[-1].endswith("keeper")


def test_references_are_decomposed_beside_the_models_without_a_gpu():
    services, work = steps("decompose", load("rlkd_demo", GPUS))
    assert services[0].name == "gsrm" and work.tasks == 1
    assert {"--overlap", "--gpus=0", "--ntasks=1"} <= set(work.options)


def test_what_the_doctor_is_to_compare_with_the_allocation():
    assert {kind: only(kind) for kind in JOBS} == {
        "train": (), "evaluate": (), "train_sft": ("trainer",), "train_gsrm": ("trainer",),
        "serve_gsrm": ("gsrm",), "decompose": ("gsrm",),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["serve_gsrm", "decompose"])
def test_without_a_gsrm_in_the_layout_there_is_nothing_to_serve(kind):
    with pytest.raises(ConfigError, match=r"layout.gsrm.nodes=0"):
        header(kind, "x", load("rlkd_demo", []))


@pytest.mark.parametrize(("text", "shown"), [("00:04:00:00", "0-04:00:00"), ("02:00:05:09", "2-00:05:09")])
def test_time_limits(text, shown):
    assert time_limit(text) == shown


def test_every_kind_names_a_file_or_a_module_that_exists():
    from pathlib import Path

    for job in JOBS.values():
        assert job.command[0] == "-m" or (Path(__file__).resolve().parents[3] / job.command[0]).is_file()


@pytest.mark.parametrize(("kind", "refused"), [("train_gsrm", True), ("train", False)])
def test_the_doctor_knows_which_jobs_are_supervised(kind, refused, capsys):
    command(["doctor", kind, "--config-name=sft_demo", "model.optim.offload_states=true"])
    assert ("supervised training, which samples none" in capsys.readouterr().out) == refused
