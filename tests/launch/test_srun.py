"""Tasks of srun as ranks."""

import pytest

from rlkd_nemo.launch.srun import adopt, hosts, port

# As Slurm 22.05 sets it for task 9 of 12 on two nodes with 8 and 4.
STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "12",
    "SLURM_STEP_TASKS_PER_NODE": "8,4",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_CPUS_PER_TASK": "12",
}


def test_a_task_becomes_a_rank():
    environment = dict(STEP)
    assert adopt(environment)
    told = {name: value for name, value in environment.items() if name not in STEP}
    assert told == {
        "RANK": "9", "WORLD_SIZE": "12", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1",
        "MASTER_ADDR": "gpu07", "MASTER_PORT": "24711", "OMP_NUM_THREADS": "12",
    }  # fmt: skip


def test_a_meeting_place_that_is_set_stays():
    environment = {**STEP, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    adopt(environment)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("10.0.0.1", "29500")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "4711", "SLURM_PROCID": "0", "SLURM_NTASKS": "12"},  # the batch script itself
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},  # our own launcher starts the ranks of this machine
        {**STEP, "RANK": "3"},  # torchrun inside of srun
    ],
    ids=["no slurm", "batch script", "one task", "torchrun"],
)
def test_what_is_no_rank_of_srun_is_left_alone(environment):
    before = dict(environment)
    assert not adopt(environment)
    assert environment == before


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("n1", ["n1"]),
        ("n[1-3,7],login", ["n1", "n2", "n3", "n7", "login"]),
        ("gpu-[08-11]", ["gpu-08", "gpu-09", "gpu-10", "gpu-11"]),
        ("r[1-2]n[01-02]-ib", ["r1n01-ib", "r1n02-ib", "r2n01-ib", "r2n02-ib"]),
    ],
)
def test_node_lists(short, long):
    assert list(hosts(short)) == long


def test_jobs_next_to_one_another_meet_on_different_ports():
    assert len({port(job) for job in range(9_990, 10_030)}) == 40
    assert all(20000 <= port(job) < 30000 for job in (1, 9_999, 10_000, 67_108_863))
