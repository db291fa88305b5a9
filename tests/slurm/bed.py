"""A real Slurm on one machine: munged, slurmctld and four slurmd on loopback, in a folder of their own.

All nodes share one hostname; what tells them apart is SLURMD_NODENAME. Wants root and the packages slurm-wlm and munge,
which `Bed` installs with apt where they are missing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NODES = ("n1", "n2", "n3", "n4")
GPUS = 8
NEEDED = ("slurmctld", "slurmd", "sbatch", "munged")

_CONF = """\
ClusterName=bed
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={work}/munge/socket,cred_expire=5
CryptoType=crypto/munge
SlurmdTimeout=10
SlurmctldPort={controller}
SlurmctldPidFile={work}/run/slurmctld.pid
SlurmdPidFile={work}/run/slurmd.%n.pid
SlurmctldLogFile={work}/log/slurmctld.log
SlurmdLogFile={work}/log/slurmd.%n.log
StateSaveLocation={work}/state
SlurmdSpoolDir={work}/spool/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
ReturnToService=2
KillWait=5
JobCompType=jobcomp/filetxt
JobCompLoc={work}/log/jobcomp.log
SlurmdParameters=config_overrides
GresTypes=gpu
{nodes}
PartitionName=batch Nodes=n[1-4] Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Why no Slurm can be brought up here; None when it can."""
    if os.geteuid() != 0:
        return "needs root, to start munged and slurmd"
    missing = [name for name in NEEDED if not shutil.which(name)]
    if missing and not shutil.which("apt-get"):
        return f"needs {', '.join(missing)} (packages slurm-wlm and munge)"
    return None


def install() -> None:
    """The packages, by apt, where they are missing."""
    if all(shutil.which(name) for name in NEEDED):
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], check=True, env=environment, timeout=300)
    packages = ["slurm-wlm", "munge"]
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    subprocess.run(command, check=True, env=environment, timeout=600, stdout=subprocess.DEVNULL)


class Bed:
    """The running cluster. `environment` points Slurm's commands to it."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.environment = {**os.environ, "SLURM_CONF": str(work / "slurm.conf")}
        self._munged: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Bring everything up and wait until four nodes are idle."""
        for name in ("run", "log", "state", "spool", "munge"):
            (self.work / name).mkdir(parents=True)
        self._start_munge()
        ports = _free_ports(1 + len(NODES))
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} CPUs=8 RealMemory=4096 "
            f"Gres=gpu:{GPUS} State=UNKNOWN"
            for name, port in zip(NODES, ports[1:])
        )
        conf = _CONF.format(host=socket.gethostname(), work=self.work, controller=ports[0], nodes=nodes)
        (self.work / "slurm.conf").write_text(conf)
        # Empty files for devices: Slurm counts and assigns GPUs that are none, so that options for GPUs are tried too.
        for number in range(GPUS):
            (self.work / f"gpu{number}").touch()
        (self.work / "gres.conf").write_text(f"NodeName=n[1-4] Name=gpu File={self.work}/gpu[0-{GPUS - 1}]\n")
        self.run("slurmctld", "-c")
        for name in NODES:
            self.run("slurmd", "-N", name)
        self.wait_for(lambda: self.run("sinfo", "-h", "-o", "%t %D").split() == ["idle", "4"], 60, "four idle nodes")

    def _start_munge(self) -> None:
        # A daemon of its own, with its own key and socket: one that runs already is left alone.
        folder = self.work / "munge"
        (folder / "key").write_bytes(os.urandom(1024))
        for path in (folder, folder / "key"):
            shutil.chown(path, "munge", "munge")
        (folder / "key").chmod(0o400)
        folder.chmod(0o711)
        paths = [f"--{name}={folder / name}" for name in ("socket", "pid-file", "log-file", "seed-file")]
        command = ["runuser", "-u", "munge", "--", "munged", "--foreground", f"--key-file={folder / 'key'}", *paths]
        self._munged = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.wait_for((folder / "socket").exists, 20, "munged")

    def stop(self) -> None:
        """End the jobs, then every daemon; nothing is left."""
        if (self.work / "slurm.conf").exists():
            with contextlib.suppress(subprocess.SubprocessError):
                self.run("scancel", "--user=root")
                self.wait_for(lambda: not self.run("squeue", "-h"), 30, "the jobs' end")
        pids = [int(path.read_text()) for path in (self.work / "run").glob("*.pid")]
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            with contextlib.suppress(TimeoutError):
                self.wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 15, "the daemons' end")
                break
        if self._munged is not None:
            self._munged.terminate()
            self._munged.wait(10)

    def run(self, *command: object, check: bool = True, timeout: float = 60, **environment: str) -> str:
        """One of Slurm's commands; its stdout. Raises CalledProcessError with what it said."""
        done = subprocess.run(
            [str(part) for part in command], env={**self.environment, **environment}, timeout=timeout,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}: code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    @property
    def version(self) -> str:
        """What Slurm calls itself."""
        return self.run("sinfo", "--version")

    def wait_for(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        """Poll until true. Raises TimeoutError with the controller's last lines."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                file = self.work / "log" / "slurmctld.log"
                said = "\n".join(file.read_text().splitlines()[-15:]) if file.exists() else ""
                raise TimeoutError(f"no {what} after {seconds:g} s\n{said}")
            time.sleep(0.1)

    def state(self, job: str) -> str:
        """RUNNING, PENDING, COMPLETED, ... of a job; GONE once the controller has forgotten it."""
        # The leader's line comes first; other components follow.
        lines = self.run("scontrol", "--oneliner", "show", "job", job, check=False).splitlines()
        fields = dict(word.split("=", 1) for word in (lines[0].split() if lines else ()) if "=" in word)
        return fields.get("JobState", "GONE")

    def processes(self) -> dict[int, str]:
        """Every process of a job, wherever it went: pid to command line. Daemons and their step keepers are none."""
        mark = f"SLURM_CONF={self.work / 'slurm.conf'}\0".encode()
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                environment = (folder / "environ").read_bytes()
                if mark in environment and b"\0SLURM_JOB_ID=" in environment:
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    if command and not command.startswith("slurmstepd"):
                        found[int(folder.name)] = command
        return found

    def ended(self, job: str, seconds: float = 120) -> str:
        """Wait until a job has ended in any way; its last state."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "GONE")
        self.wait_for(lambda: self.state(job) in over, seconds, f"end of job {job}")
        return self.state(job)


@contextlib.contextmanager
def bed() -> Iterator[Bed]:
    """A cluster for the time of a `with`, torn down in every way out."""
    install()
    work = Path(tempfile.mkdtemp(prefix="rlkd-slurm-"))
    work.chmod(0o711)  # munged is another user
    cluster = Bed(work)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(work, ignore_errors=True)


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
