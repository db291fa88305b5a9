"""One Slurm for all tests of this folder, one pair of small models, and the figures that are kept."""

import datetime
import functools
import json
import os
import re
import sys
from pathlib import Path

import pytest

from rlkd_nemo.launch.local import _free_port as free_port
from tests.integration.conftest import SMALL, read_metrics, run_example
from tests.ranks import ROOT
from tests.slurm.bed import bed, why_not

# Twelve steps, long enough to be met at work.
RUN = [
    *SMALL, "trainer.rlkd.max_steps=12", "trainer.rlkd.save_interval=5", "trainer.rlkd.val_check_interval=6",
    "rlkd.updates_per_batch=2",
]  # fmt: skip


def pytest_collection_modifyitems(items):
    # Starting daemons is asked for (make test-slurm), not a side effect of running all tests.
    reason = why_not() if os.environ.get("RLKD_SLURM") else "starts a Slurm of its own: make test-slurm"
    for item in items:
        if item.get_closest_marker("slurm") and reason:
            item.add_marker(pytest.mark.skip(reason=reason))


_outcomes = {}


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        _outcomes[report.nodeid.split("::", 1)[1]] = report.outcome


@pytest.fixture(scope="session")
def cluster():
    with bed() as running:
        yield running


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Overrides that name a small student and its teacher."""
    directory = tmp_path_factory.mktemp("models")
    ended = run_example(
        "quickstart", *SMALL, f"exp_manager.exp_dir={directory}", "demo.base.steps=60", "demo.teacher.steps=20",
        "demo.student.steps=10", "demo.min_teacher_accuracy=0", "demo.test_problems=4", "demo.test_samples=1",
        "trainer.rlkd.max_steps=1", "model.tensor_model_parallel_size=1",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    return [
        f"model.restore_from_path={directory}/student/checkpoints/step-000010",
        f"teacher.restore_from_path={directory}/teacher/checkpoints/step-000020",
    ]


@pytest.fixture(scope="session")
def figures(cluster):
    """What was measured; kept where RLKD_SLURM_RESULTS says."""
    found = {}
    yield found
    kept = os.environ.get("RLKD_SLURM_RESULTS")
    if kept and found:
        about = {
            "date": datetime.date.today().isoformat(),
            "machine": f"{os.cpu_count()} CPU cores, load {os.getloadavg()[2]:.0f}; {cluster.version}, four slurmd on loopback; "
            "gloo",
            "command": "make test-slurm",
        }
        Path(kept).write_text(json.dumps(about | found | {"tests": _outcomes}, indent=2) + "\n")


class Job:
    """A submitted job and its run directory."""

    def __init__(self, cluster, number, directory):
        self.cluster, self.number, self.directory = cluster, number, directory
        self.log_file = directory / "job.log"

    @property
    def log(self):
        return self.log_file.read_text() if self.log_file.exists() else ""

    @property
    def state(self):
        return self.cluster.state(self.number)

    def steps(self):
        """Steps that are logged so far."""
        file = self.directory / "metrics.jsonl"
        return file.read_text().count("\n") - 1 if file.exists() else -1

    def reaches(self, step, seconds=120):
        """Wait until `step` is logged, or fail with all there is to read."""
        self.until(lambda: self.steps() >= step, seconds, f"step {step}")

    def says(self, text, seconds=120):
        self.until(lambda: text in self.log, seconds, f"line with {text!r}")

    def until(self, condition, seconds, what):
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
        try:
            self.cluster.wait_for(lambda: condition() or self.state in over, seconds, what)
        except TimeoutError as err:
            raise AssertionError(f"{err}\n{self.everything()}") from None
        assert condition(), f"the job ended ({self.state}) before {what}\n{self.everything()}"

    def ends(self, state, seconds=120):
        """Wait for the end, which is `state`, and for the last process to be gone."""
        found = self.cluster.ended(self.number, seconds)
        assert found == state, f"{found}, wanted {state}\n{self.everything()}"
        left = {}

        def gone():
            nonlocal left
            left = self.cluster.processes()
            return not left

        try:
            self.cluster.wait_for(gone, 30, "end of the last process")
        except TimeoutError:
            raise AssertionError(f"orphans: {left}") from None

    def everything(self):
        files = [self.log_file, *sorted(self.directory.glob("logs/*.log"))]
        return "\n".join(f"--- {file}\n{file.read_text()[-4000:]}" for file in files if file.exists())

    def find(self, *words):
        """The only process of the job whose command line holds all the words."""
        found = [pid for pid, command in self.cluster.processes().items() if all(word in command for word in words)]
        assert len(found) == 1, (words, self.cluster.processes())
        return found[0]


@functools.cache
def _ports():
    """Of the nodes, which are all this machine: whatever else runs here has its own."""
    return [f"layout.trainer.port={free_port()}", f"gsrm.server.port={free_port()}"]


def _submit(cluster, models, script, *overrides, directory, sbatch=(), check=True):
    directory.mkdir(parents=True, exist_ok=True)
    options = ["--parsable", f"--output={directory / 'job.log'}", *sbatch]
    said = cluster.run(
        ROOT / "slurm/submit.sh", f"slurm/{script}.sh", *[f"--sbatch={option}" for option in options],
        "--config-name=rlkd_demo", "layout=cpu_loopback", *_ports(), *RUN, *models, f"exp_manager.exp_dir={directory}",
        *overrides,
        check=check, RLKD_PYTHON=sys.executable, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1",
    )  # fmt: skip
    number = re.fullmatch(r"\d+", said.splitlines()[-1] if said else "")
    return said if number is None else Job(cluster, number[0], directory)


@pytest.fixture
def submit(cluster, models, tmp_path):
    """`submit(script, *overrides, sbatch=())`: through slurm/submit.sh, with the layout of CPU ranks on three nodes."""
    jobs = []

    def call(script, *overrides, **options):
        jobs.append(_submit(cluster, models, script, *overrides, **{"directory": tmp_path, **options}))
        return jobs[-1]

    yield call
    for job in jobs:
        if isinstance(job, Job) and job.state in ("PENDING", "RUNNING", "COMPLETING"):
            cluster.run("scancel", job.number, check=False)
            cluster.ended(job.number, 30)


@pytest.fixture(scope="session")
def uninterrupted(cluster, models, tmp_path_factory):
    """A job that ran to its end, and its metrics."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    job = _submit(cluster, models, "rlkd_70b_to_8b", directory=directory)
    job.ends("COMPLETED", 180)
    return job, read_metrics(directory)
