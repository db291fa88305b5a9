"""One attempt of a job: places, ports and settings as the shell gets them."""

import subprocess

import pytest

from rlkd_nemo.config.load import load
from rlkd_nemo.errors import InputError
from rlkd_nemo.launch import keeper
from rlkd_nemo.launch.slurm.network import network
from rlkd_nemo.launch.slurm.plan import addresses, assignments

SHOWN = """\
NodeName=n1 Arch=x86_64 NodeAddr=10.0.0.1 NodeHostName=n1 Port=6818
NodeName=n2 Arch=x86_64 NodeAddr=10.0.0.2 NodeHostName=n2 Port=6818
NodeName=n3 Arch=x86_64 NodeAddr=10.0.0.3 NodeHostName=n3 Port=6818
"""
JOB = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST_HET_GROUP_0": "n[1-2]", "SLURM_JOB_NODELIST_HET_GROUP_1": "n3"}


def shell(lines, wanted):
    """What bash makes of the lines: the words of `wanted`, one a line."""
    script = "\n".join(lines) + f"\nprintf '%s\\n' {wanted}"
    return subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True).stdout.splitlines()


def plan(*overrides, environment=JOB, shown=SHOWN, kind="train"):
    return assignments(kind, load("rlkd_demo", ["layout=cpu_loopback", *overrides]), environment, shown)


def test_addresses_are_those_by_which_slurm_reaches_the_nodes():
    assert addresses(SHOWN) == {"n1": "10.0.0.1", "n2": "10.0.0.2", "n3": "10.0.0.3"}


def test_what_the_script_reads():
    lines = plan("exp_manager.exp_dir='a b'")
    words = '"$RLKD_MAIN" "${RLKD_SERVICES[@]}" "$RLKD_LOGS" "$RLKD_ATTEMPT" "$RLKD_TASKS" "$MASTER_ADDR:$MASTER_PORT"'
    assert shell(lines, words) == ["trainer", "gsrm", "a b/logs", "12-0", "2", "10.0.0.1:29500"]
    assert shell(lines, '"${RLKD_OVERRIDES[@]}" "$RLKD_READY_gsrm" "${RLKD_SRUN_trainer[@]}"')[:4] == [
        "gsrm.service.urls=[http://10.0.0.3:8700]", "gsrm.server.host=0.0.0.0", "http://10.0.0.3:8700/ready",
        "--het-group=0",
    ]  # fmt: skip


def test_the_overrides_are_a_config_that_holds():
    from rlkd_nemo.config.rules import check

    found = shell(plan(), '"${RLKD_OVERRIDES[@]}"')
    cfg = load("rlkd_demo", ["layout=cpu_loopback", *found])
    assert cfg.gsrm.service.urls == ["http://10.0.0.3:8700"] and check(cfg) == []


def test_a_restart_has_a_name_of_its_own():
    assert shell(plan(environment={**JOB, "SLURM_RESTART_COUNT": "2"}), '"$RLKD_ATTEMPT"') == ["12-2"]


def test_a_server_on_loopback_is_not_opened_to_others():
    lines = plan(shown=SHOWN.replace("10.0.0.", "127.0.0."))
    assert "gsrm.server.host=127.0.0.3" in shell(lines, '"${RLKD_OVERRIDES[@]}"')


def test_models_of_the_gsrm_are_asked_where_they_run():
    served = [
        "gsrm=vllm", "layout.gsrm.nodes=2", "layout.gsrm.gpus_per_node=4", "layout.gsrm.judge.replicas=2",
        "layout.gsrm.judge.tensor_parallel_size=4", "layout.gsrm.judge.weights=w",
    ]  # fmt: skip
    lines = plan(*served, environment={**JOB, "SLURM_JOB_NODELIST_HET_GROUP_1": "n[2-3]"})
    assert "gsrm.llm.judge.urls=[http://10.0.0.2:8100/v1,http://10.0.0.3:8101/v1]" in shell(
        lines, '"${RLKD_OVERRIDES[@]}"'
    )


def test_models_that_other_nodes_reach_want_a_key_of_the_job(monkeypatch):
    served = [
        "gsrm=vllm", "layout.gsrm.nodes=2", "layout.gsrm.gpus_per_node=1", "layout.gsrm.decomposer.replicas=1",
        "layout.gsrm.decomposer.weights=w", "layout.gsrm.judge.replicas=1", "layout.gsrm.judge.weights=w",
        "gsrm.llm.judge.api_key_env=OURS",
    ]  # fmt: skip
    monkeypatch.setenv("RLKD_VLLM_KEY", "s3cret")
    lines = plan(*served, environment={**JOB, "SLURM_JOB_NODELIST_HET_GROUP_1": "n[2-3]"})
    found = shell(lines, '"${RLKD_OVERRIDES[@]}"')
    assert [word for word in found if "api_key_env" in word] == ["gsrm.llm.decomposer.api_key_env=RLKD_VLLM_KEY"]
    assert not any("s3cret" in line for line in lines)
    cfg = load("rlkd_demo", ["layout=cpu_loopback", *served, *found])
    command, own = keeper.commands(cfg, 0, found)["decomposer on port 8000"]
    assert own["VLLM_API_KEY"] == "s3cret" and not any("s3cret" in word for word in command)
    alone = [*served, "layout.gsrm.nodes=1", "layout.gsrm.gpus_per_node=2"]  # on loopback
    assert not any("api_key_env" in word for word in shell(plan(*alone), '"${RLKD_OVERRIDES[@]}"'))


def test_models_beside_their_only_server_are_asked_on_loopback():
    served = ["gsrm=vllm", "layout.gsrm.gpus_per_node=4", "layout.gsrm.judge.replicas=1", "layout.gsrm.judge.weights=w"]
    assert "gsrm.llm.judge.urls=[http://127.0.0.1:8100/v1]" in shell(plan(*served), '"${RLKD_OVERRIDES[@]}"')


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({**JOB, "SLURM_JOB_NODELIST_HET_GROUP_0": "n[1-4]"}, r"gave the trainer 4 node\(s\) where the layout wants 2"),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n1"}, "HET_GROUP_0 is not set"),
    ],
)
def test_another_allocation_than_the_layout_is_refused(environment, said):
    with pytest.raises(InputError, match=said):
        plan(environment=environment)


def test_network_settings_stand_in_one_place():
    site = {"RLKD_NETWORK_INTERFACE": "ib0", "RLKD_INFINIBAND": "mlx5_0,mlx5_1"}
    assert network({}, gpus=False) == {}
    found = network(site, gpus=True)
    assert found["NCCL_SOCKET_IFNAME"] == found["GLOO_SOCKET_IFNAME"] == "ib0"
    assert found["NCCL_IB_HCA"] == "mlx5_0,mlx5_1" and found["UCX_NET_DEVICES"] == "mlx5_0:1,mlx5_1:1"
    assert found["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert "NCCL_DEBUG" not in network({**site, "NCCL_DEBUG": "INFO"}, gpus=True)  # what the user set stays
