"""Jobs that ask for GPUs, on nodes whose GPUs are empty files; models are a stand-in for vLLM (benchmarks/gsrm_endpoint.py)."""

import os
import signal
import sys

import httpx2
import pytest

from rlkd_nemo.launch.slurm.submit import with_header
from tests.ranks import ROOT
from tests.slurm.conftest import Job

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
VLLM = """#!/usr/bin/env bash
# vllm serve WEIGHTS --host H --port P --served-model-name M ...
exec {python} {root}/benchmarks/gsrm_endpoint.py --port "$6" --model "$8" --first-token-s 0 --token-s 0
"""
STEPS = "first: What is 3+4? = 7\nthen: What is 2*7? = 14"


@pytest.fixture
def vllm(tmp_path):
    """A `vllm` that jobs find first."""
    stand_in = tmp_path / "bin" / "vllm"
    stand_in.parent.mkdir()
    stand_in.write_text(VLLM.format(python=sys.executable, root=ROOT))
    stand_in.chmod(0o755)
    return f"{stand_in.parent}:{os.environ['PATH']}"


def test_the_keeper_serves_models_and_ends_with_them(cluster, tmp_path, vllm):
    part = "layout.gsrm"
    said = cluster.run(
        ROOT / "slurm/submit.sh", "slurm/serve_gsrm.sh", "--sbatch=--parsable", f"--sbatch=--output={tmp_path}/job.log",
        "--config-name=rlkd_demo", "gsrm=vllm", f"{part}.nodes=1", f"{part}.gpus_per_node=4", f"{part}.mem_gb=2",
        f"{part}.cpus_per_task=2", f"{part}.decomposer.replicas=2", f"{part}.decomposer.weights=models/gsrm",
        f"{part}.judge.replicas=1", f"{part}.judge.weights=models/judge", f"{part}.judge.tensor_parallel_size=2",
        f"{part}.decomposer.port=18000", f"{part}.judge.port=18100", "gsrm.server.port=18700",
        "gsrm.llm.decomposer.urls=[http://127.0.0.1:18000/v1,http://127.0.0.1:18001/v1]",
        "gsrm.llm.judge.urls=[http://127.0.0.1:18100/v1]",
        "model.restore_from_path=null", "objective=grpo", f"exp_manager.exp_dir={tmp_path}",
        RLKD_PYTHON=sys.executable, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", PATH=vllm,
    )  # fmt: skip
    job = Job(cluster, said.splitlines()[-1], tmp_path)
    log = tmp_path / "logs" / f"gsrm.{job.number}-0.0.log"
    job.until(lambda: log.exists() and "listening on http://" in log.read_text(), 90, "listening server")
    url = "http://127.0.0.1:18700"
    ready = httpx2.get(f"{url}/ready").json()
    assert ready["ready"] and [backend["role"] for backend in ready["backends"]] == [
        "decomposer",
        "decomposer",
        "judge",
    ]
    secret = next(
        line.split("=", 1)[1] for line in _environment(job.find("serve_gsrm.py")) if line.startswith("RLKD_GSRM_TOKEN=")
    )
    item = {"id": "a", "problem": "What is 2*(3+4)?", "response": STEPS, "references": [STEPS]}
    answer = httpx2.post(f"{url}/score", json={"items": [item]}, headers={"authorization": f"Bearer {secret}"}).json()
    assert (answer["items"][0]["status"], answer["items"][0]["reward"]) == ("ok", 1.0), answer
    assert {_gpus(pid) for pid in _models(job)} == {"0", "1", "2,3"}  # each has its own
    os.kill(_models(job)[0], signal.SIGKILL)
    job.ends("FAILED")
    assert "ended with code -9" in job.log and "on port 18" in job.log


def test_ranks_with_a_gpu_each(submit):
    job = submit(
        "single_node", "gsrm.scorer=embedded", "layout.gsrm.nodes=0", "layout.trainer.gpus_per_node=1",
        "trainer.accelerator=auto", "trainer.rlkd.max_steps=1",
    )  # fmt: skip
    assert "TresPerNode=gres:gpu:1" in job.cluster.run("scontrol", "show", "job", job.number)
    job.ends("COMPLETED", 180)


def test_the_doctor_sees_gpus_that_gres_asked_for(cluster, tmp_path):
    text = (ROOT / "slurm/rlkd_70b_to_8b.sh").read_text()
    part = "#SBATCH --nodes=1 --ntasks-per-node=1 --mem=1G --gres=gpu:{}"
    script = tmp_path / "job.sh"
    script.write_text(with_header(text, [part.format(2), "#SBATCH hetjob", part.format(3)]))
    number = cluster.run(
        "sbatch", "--parsable", f"--output={tmp_path}/job.log", script, "layout.trainer.gpus_per_node=4",
        "layout.gsrm.gpus_per_node=4", RLKD_PYTHON=sys.executable, PYTHONPATH=str(ROOT),
    )  # fmt: skip
    assert cluster.ended(number) == "FAILED"
    assert "ExitCode=2:0" in cluster.run("scontrol", "show", "job", number)
    said = (tmp_path / "job.log").read_text()
    assert "SLURM_GPUS_ON_NODE=2, the layout wants 4" in said, said
    assert "TresPerNode (scontrol show job) of component 1=3, the layout wants 4" in said, said


def _environment(pid):
    with open(f"/proc/{pid}/environ") as file:
        return file.read().split("\0")


def _gpus(pid):
    return next(line.split("=")[1] for line in _environment(pid) if line.startswith("CUDA_VISIBLE_DEVICES="))


def _models(job):
    return [pid for pid, command in job.cluster.processes().items() if "gsrm_endpoint.py" in command]
