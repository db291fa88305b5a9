"""The other scripts of slurm/, and ranks that srun starts without any script."""

import json
import sys

import httpx2
import pytest

from tests.integration.conftest import SMALL
from tests.ranks import ROOT

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]


def test_a_server_of_its_own_serves_until_it_is_told_to_stop(submit, cluster):
    job = submit("serve_gsrm")
    log = job.directory / "logs" / f"gsrm.{job.number}-0.0.log"
    job.until(lambda: log.exists() and "listening on http://" in log.read_text(), 60, "listening server")
    url = log.read_text().split("listening on ")[1].split(",")[0]
    assert httpx2.get(f"{url}/ready").json()["ready"]
    cluster.run("scancel", "--signal=USR1", "--batch", job.number)
    job.says("given back to Slurm")  # a server's time is over: it goes on in the next allocation
    cluster.run("scancel", job.number)
    job.ends("CANCELLED")


def test_references_are_decomposed_by_a_job(submit):
    job = submit("decompose_references", "gsrm.prefill.num_problems=5")
    job.ends("COMPLETED")
    assert list((job.directory / "references").iterdir()) and "decompose is done" in job.log


def test_a_checkpoint_is_evaluated_by_a_job(submit, models):
    job = submit(
        "evaluate", "gsrm.scorer=embedded", "layout.gsrm.nodes=0", "demo.test_problems=4", "demo.test_samples=1"
    )
    job.ends("COMPLETED")
    assert 0 <= json.loads((job.directory / "evaluation.json").read_text())["accuracy"] <= 1


def test_an_evaluation_told_to_stop_keeps_what_it_has_is_requeued_and_goes_on(submit, cluster):
    job = submit(
        "evaluate", "gsrm.scorer=embedded", "layout.gsrm.nodes=0", "demo.test_problems=400", "demo.test_samples=2",
        "rollout.batch_size=2",
    )  # fmt: skip
    kept = job.directory / "evaluation.partial.jsonl"
    job.until(kept.exists, 90, "finished part")
    cluster.run("scancel", "--signal=USR1", "--batch", job.number)
    job.says("given back to Slurm")
    before = len(kept.read_text().splitlines())
    assert before < 400 * 2 and not (job.directory / "evaluation.json").exists()
    job.says(f"attempt {job.number}-1", 60)
    job.ends("COMPLETED", 300)
    assert 0 <= json.loads((job.directory / "evaluation.json").read_text())["accuracy"] <= 1 and not kept.exists()
    assert "test problems 400/400" in job.everything()


def test_a_plain_sbatch_with_a_wrong_config_ends_with_code_2_before_anything_starts(cluster, tmp_path):
    number = cluster.run(
        "sbatch", "--parsable", f"--output={tmp_path}/job.log", "--ntasks-per-node=2", "--cpus-per-task=1", "--mem=1G",
        "--gpus-per-node=0",
        ROOT / "slurm/single_node.sh", "model.num_layer=3", RLKD_PYTHON=sys.executable, PYTHONPATH=str(ROOT),
    )  # fmt: skip
    assert cluster.ended(number) == "FAILED"
    assert "ExitCode=2:0" in cluster.run("scontrol", "show", "job", number)
    assert "did you mean model.num_layers?" in (tmp_path / "job.log").read_text()


def test_tasks_of_srun_are_ranks_without_a_script(cluster, models, tmp_path):
    # Only the address must be said: on this machine the nodes' names lead nowhere.
    cluster.run(
        "srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", sys.executable, ROOT / "examples/train_rlkd.py",
        "layout=cpu_loopback", "gsrm.scorer=embedded", "layout.gsrm.nodes=0", *SMALL, *models, "trainer.rlkd.max_steps=1",
        f"exp_manager.exp_dir={tmp_path}", PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", MASTER_ADDR="127.0.0.1", timeout=200,
    )  # fmt: skip
    assert (tmp_path / "checkpoints" / "step-000001" / "meta.json").exists()
