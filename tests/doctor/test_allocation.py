"""The allocation against the layout, by Slurm's own variables."""

import pytest

from rlkd_nemo.doctor.allocation import ask_slurm, findings
from rlkd_nemo.launch.components import Component

TRAINER = Component("trainer", 4, 8, 8, 14, None, "trainer")
GSRM = Component("gsrm", 1, 1, 4, 8, 64, "vllm")
RIGHT = {
    "SLURM_JOB_ID": "7",
    "SLURM_HET_SIZE": "2",
    "SLURM_JOB_NUM_NODES_HET_GROUP_0": "4",
    "SLURM_NTASKS_PER_NODE_HET_GROUP_0": "8",
    "SLURM_GPUS_PER_NODE_HET_GROUP_0": "h100:8",
    "SLURM_CPUS_PER_TASK_HET_GROUP_0": "14",
    "SLURM_JOB_NUM_NODES_HET_GROUP_1": "1",
    "SLURM_GPUS_PER_NODE_HET_GROUP_1": "8",
    "SLURM_MEM_PER_NODE_HET_GROUP_1": "65536",
}


# As Slurm 22.05 shows a job of two components that asked by --gres.
SHOWN = """\
JobId=6 HetJobId=6 HetJobOffset=0 JobName=het.sh TRES=cpu=1,node=1,billing=1 TresPerNode=gres:gpu:8 Power=
JobId=7 HetJobId=6 HetJobOffset=1 JobName=het.sh TRES=cpu=1,node=1,billing=1 TresPerNode=gres:gpu:2 Power=
"""


def said(parts, environment, shown=""):
    return [finding.text for finding in findings(parts, environment, lambda job: shown)]


def test_silent_without_an_allocation_and_in_the_right_one():
    assert said([TRAINER, GSRM], {}) == []
    assert said([TRAINER, GSRM], RIGHT) == []
    assert said([TRAINER], {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "4"}) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"SLURM_JOB_NUM_NODES_HET_GROUP_0": "3"}, "=3, the layout wants 4 (trainer.num_nodes)"),
        ({"SLURM_NTASKS_PER_NODE_HET_GROUP_0": "4(x4)"}, "=4, the layout wants 8 (trainer.devices)"),
        ({"SLURM_GPUS_PER_NODE_HET_GROUP_0": "gpu:h100:4"}, "=4, the layout wants 8 (layout.trainer.gpus_per_node)"),
        ({"SLURM_CPUS_PER_TASK_HET_GROUP_0": "4"}, "=4, the layout wants 14 (layout.trainer.cpus_per_task)"),
        ({"SLURM_GPUS_PER_NODE_HET_GROUP_1": "2"}, "=2, the layout wants 4 (layout.gsrm.gpus_per_node)"),
        ({"SLURM_MEM_PER_NODE_HET_GROUP_1": "1024"}, "=1024 MB, the layout wants 64 GB (layout.gsrm.mem_gb)"),
    ],
)
def test_each_number(change, words):
    (only,) = said([TRAINER, GSRM], {**RIGHT, **change})
    assert words in only


# Of RIGHT without what --gpus-per-node sets.
BY_GRES = {key: value for key, value in RIGHT.items() if "GPUS" not in key}


def test_gpus_that_gres_asked_for():
    # Slurm tells the batch script what its own node got; of the other components scontrol knows.
    assert said([TRAINER, GSRM], {**BY_GRES, "SLURM_GPUS_ON_NODE": "8"}, SHOWN.replace("gpu:2", "gpu:4")) == []
    first, second = said([TRAINER, GSRM], {**BY_GRES, "SLURM_GPUS_ON_NODE": "4"}, SHOWN)
    assert "trainer has SLURM_GPUS_ON_NODE=4, the layout wants 8 (layout.trainer.gpus_per_node)" in first
    assert "gsrm has TresPerNode (scontrol show job) of component 1=2, the layout wants 4" in second
    assert said([TRAINER, GSRM], BY_GRES) == []  # nothing tells


@pytest.mark.parametrize(
    "asked", ["gres:gpu:2", "gres:gpu:h100:2", "gres/gpu:2", "gres/gpu:h100=2", "gres:nvme:9,gres:gpu:2"]
)
def test_how_slurms_write_it(asked):
    (only,) = said([GSRM], {"SLURM_JOB_ID": "7"}, f"JobId=7 JobName=x TresPerNode={asked} Power=\n")
    assert "=2, the layout wants 4" in only


def test_a_share_of_a_task_is_not_a_node_s():
    assert said([GSRM], {"SLURM_JOB_ID": "7", "SLURM_GPUS_PER_TASK": "1", "SLURM_GPUS_ON_NODE": "1"}) == []


def test_slurm_is_asked_only_where_gpus_are_wanted_and_nothing_tells(monkeypatch, tmp_path):
    asked = []
    cpus = Component("trainer", 1, 2, 0, 1, None, "cpu")
    list(findings([cpus], {"SLURM_JOB_ID": "7"}, asked.append))
    list(findings([GSRM], {"SLURM_JOB_ID": "7", "SLURM_GPUS_PER_NODE": "8"}, asked.append))
    assert asked == []
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_slurm("7") == ""  # in a container there is no scontrol


def test_a_job_of_another_shape():
    (only,) = said([TRAINER, GSRM], {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "5"})
    assert "the Slurm job has 1 component(s), the layout 2 (trainer + gsrm)" in only
