"""The allocation against the layout, by Slurm's own variables."""

import pytest

from rlkd_nemo.doctor.allocation import findings
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


def said(parts, environment):
    return [finding.text for finding in findings(parts, environment)]


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


def test_a_job_of_another_shape():
    (only,) = said([TRAINER, GSRM], {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "5"})
    assert "the Slurm job has 1 component(s), the layout 2 (trainer + gsrm)" in only
