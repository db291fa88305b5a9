"""The CPU image, really built, and quick tests inside of it.

Without a registry: its base is a Debian made here with mmdebstrap; without a container engine: buildah's chroot.
"""

import datetime
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.ranks import ROOT

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1800)]
BASE = "localhost/rlkd-base:bookworm"
QUICK = [
    "tests/losses",
    "tests/config",
    "tests/rewards",
    "tests/gsrm/test_alignment.py",
    "tests/launch/slurm/test_plan.py",
]
NOT = "not slow and not ranks and not browser and not gpu"


def run(*command, timeout=1500, **environment):
    """A command; its stdout. AssertionError with its last words."""
    done = subprocess.run(
        [str(part) for part in command], env={**os.environ, **environment}, cwd=ROOT, timeout=timeout,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = f"{' '.join(map(str, command))}: code {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    assert done.returncode == 0, said
    return done.stdout.strip()


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """Options of buildah for a storage of its own, gone afterwards."""
    if not all(map(shutil.which, ("buildah", "mmdebstrap"))):
        run("apt-get", "update", "-qq")
        run(
            "apt-get",
            "install",
            "-y",
            "-qq",
            "--no-install-recommends",
            "buildah",
            "mmdebstrap",
            DEBIAN_FRONTEND="noninteractive",
        )
    folder = tmp_path_factory.mktemp("images")
    yield ["--storage-driver", "vfs", "--root", folder / "root", "--runroot", folder / "run"]
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def base(storage, tmp_path_factory):
    """A Debian that stands for debian:bookworm-slim; RLKD_CONTAINER_BASE names a tar that was made before."""
    tar = Path(os.environ.get("RLKD_CONTAINER_BASE", tmp_path_factory.mktemp("base") / "base.tar"))
    if not tar.exists():
        run("mmdebstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", tar)
    empty = run("buildah", *storage, "from", "scratch")
    run("buildah", *storage, "add", empty, tar, "/")
    run("buildah", *storage, "commit", "--rm", empty, BASE)
    return BASE


def sources():
    """Where this machine's pip looks, told to the build: certificates and folders of wheels are mounted."""
    told = ["--volume", "/etc/ssl/certs/ca-certificates.crt:/etc/ssl/certs/ca-certificates.crt:ro"]
    links = os.environ.get("PIP_FIND_LINKS")
    if links and Path(links).is_dir():
        told += [
            "--volume",
            f"{links}:{links}:ro",
            "--build-arg",
            f"PIP_FIND_LINKS={links}",
            "--build-arg",
            "TORCH_INDEX=",
        ]
    if os.environ.get("PIP_INDEX_URL"):
        told += ["--build-arg", f"PIP_INDEX_URL={os.environ['PIP_INDEX_URL']}"]
    return told


def test_the_cpu_image_is_built_and_passes_quick_tests_inside(storage, base):
    began = time.monotonic()
    options = [*storage, "--isolation", "chroot", "--network", "host", "--pull-never", "--layers=false", *sources()]
    run(
        "containers/build.sh", "cpu", "--build-arg", f"BASE={base}", "--build-arg", "EXTRAS=test", *options,
        BUILDER="buildah", TAG="localhost/rlkd-cpu:test",
    )  # fmt: skip
    built = time.monotonic() - began
    inside = run("buildah", *storage, "from", "--pull-never", "localhost/rlkd-cpu:test")

    def do(*command):
        return run("buildah", *storage, "run", "--isolation", "chroot", "--network", "host", inside, "--", *command)

    assert do("id", "-u") == "1000"
    assert "may start" in do("python", "examples/doctor.py", "model.restore_from_path=null", "objective=grpo")
    tests = do("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", NOT, *QUICK).splitlines()[-1]
    assert " passed" in tests and "failed" not in tests
    versions = do("python", "-c", "import megatron.core, torch; print(torch.__version__, megatron.core.__version__)")
    kept = os.environ.get("RLKD_CONTAINER_RESULTS")
    if kept:
        found = {
            "date": datetime.date.today().isoformat(),
            "machine": f"{os.cpu_count()} CPU cores, no container engine: buildah --isolation chroot, vfs",
            "command": "make test-containers",
            "base": "Debian bookworm, minbase, made with mmdebstrap",
            "build_s": round(built),
            "torch, megatron-core": versions,
            "tests_inside": tests,
        }
        Path(kept).write_text(json.dumps(found, indent=2) + "\n")
