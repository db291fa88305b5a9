"""10,000 items through the GSRM server while its backends fail and hang, one dies and the server itself is killed.

Two stand-in endpoints (benchmarks/gsrm_endpoint.py; no models, their replies follow a rule) fail on 5 % of the calls and
hang on another 5 %; one is killed on the way, and the server is killed (SIGKILL) and started again. Every item must get
one result under its own id: the reward that the rule gives, computed here by the embedded code, or a typed failure. What
failed is asked again, as a paused training would, until everything has its score.

    python benchmarks/gsrm_soak.py --items 10000 --out benchmarks/results/gsrm_soak.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import psutil

from rlkd_nemo.config.schema import GsrmService
from rlkd_nemo.gsrm.alignment import structure_reward
from rlkd_nemo.gsrm.service.client import GsrmClient
from rlkd_nemo.gsrm.service.core import Item
from rlkd_nemo.tasks.answers import normalised
from rlkd_nemo.types import Step

ROOT = Path(__file__).resolve().parent.parent
BATCH = 500
AIMS = [f"work out the {name} term" for name in ("first", "second", "third", "left", "right", "inner", "outer", "last")]


class SameText:
    """The stand-in's rule for all kinds of questions."""

    name = "same-text"

    def same(self, kind: str, teacher: str, student: str, problem: str) -> bool:
        """Equal after normalisation."""
        return normalised(teacher) == normalised(student)


def make_items(number: int) -> list[tuple[Item, float]]:
    """Items with the reward that is right for them; 20 responses a problem, which follow the reference for a while."""
    picker, made = random.Random(0), []
    for index in range(number):
        problem = f"problem {index // 20}"
        order = random.Random(problem).sample(AIMS, 4)
        reference = [Step(aim, f"how much is it, {n}", str(n + index // 20 % 7)) for n, aim in enumerate(order)]
        follows = picker.randint(0, 4)
        student = [
            Step(
                step.meta if n < follows else picker.choice(AIMS),
                step.question if picker.random() < 0.8 else "something else",
                step.answer if picker.random() < 0.7 else "99",
            )
            for n, step in enumerate(reference)
        ][: picker.randint(1, 4)]
        item = Item(f"item-{index}", problem, f"<think>{index}\n{text(student)}</think>", (text(reference),))
        made.append((item, structure_reward(student, reference, SameText()).reward))
    return made


def text(steps: list[Step]) -> str:
    """As the stand-in's decomposer reads it."""
    return "".join(f"{step.meta}: {step.question} = {step.answer}\n" for step in steps)


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Processes:
    """Endpoints and server, killable one by one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.endpoints = [free_port(), free_port()]
        self.server = free_port()
        self.running: dict[int, subprocess.Popen] = {}
        for port in self.endpoints:
            script, faults = "gsrm_endpoint.py", ["--fail", "0.05", "--hang", "0.05"]
            speed = ["--first-token-s", "0.02", "--token-s", "0.0005", "--slots", "128"]
            self._start(port, [str(ROOT / "benchmarks" / script), "--port", str(port), *speed, *faults])

    def start_server(self) -> None:
        """The example, with short patience: a hanging call costs two seconds."""
        urls = ",".join(f"http://127.0.0.1:{port}/v1" for port in self.endpoints)
        overrides = ["gsrm.scorer=service", f"gsrm.server.port={self.server}", f"exp_manager.exp_dir={self.directory}"]
        for role in ("decomposer", "judge"):
            overrides += [f"gsrm.{role}=llm", f"gsrm.llm.{role}.urls=[{urls}]", f"gsrm.llm.{role}.model=stand-in"]
            overrides += [f"gsrm.llm.{role}.timeout_s=2", f"gsrm.llm.{role}.breaker_cool_s=2"]
            overrides += [f"gsrm.llm.{role}.constrain=json_schema"]
        overrides += ["gsrm.llm.math_verify_s=0"]
        self._start(self.server, [str(ROOT / "examples/serve_gsrm.py"), *overrides])

    def kill(self, port: int) -> None:
        """SIGKILL."""
        process = self.running.pop(port)
        process.kill()
        process.wait()

    def rss_mib(self) -> float:
        """Memory of the server."""
        return round(psutil.Process(self.running[self.server].pid).memory_info().rss / 2**20, 1)

    def close(self) -> None:
        """End what still runs."""
        for port in list(self.running):
            self.kill(port)

    def _start(self, port: int, command: list[str]) -> None:
        with open(self.directory / f"{port}.log", "a") as log:
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
            self.running[port] = subprocess.Popen([sys.executable, *command], stderr=log, stdout=log, env=environment)


def soak(number: int, processes: Processes) -> dict:
    """All items, the two deaths, and the second asking."""
    made = make_items(number)
    right = {item.id: reward for item, reward in made}
    items = [item for item, _ in made]
    settings = GsrmService(
        urls=[f"http://127.0.0.1:{processes.server}"], startup_s=60.0, deadline_s=30.0, attempts=6, concurrency=16
    )
    client = GsrmClient(settings)
    processes.start_server()
    client.check({})
    batches = [items[start : start + BATCH] for start in range(0, number, BATCH)]
    dies, killed = len(batches) // 3, 2 * len(batches) // 3
    counts: Counter[str] = Counter()
    failed: list[Item] = []
    wrong, seen = [], Counter()
    started = time.monotonic()

    def restart() -> None:
        processes.kill(processes.server)
        time.sleep(1.0)
        processes.start_server()

    def take(results) -> None:
        by_id = {item.id: item for item in items}
        for result in results:
            seen[result.id] += result.status == "ok"
            if result.status == "failed":
                assert result.reward is None and result.failure is not None and result.failure.by_system
                failed.append(by_id[result.id])
                counts[f"failed_{result.failure.value}"] += 1
            elif abs(result.reward - right[result.id]) > 1e-12:
                wrong.append((result.id, result.reward, right[result.id]))

    answered = 0
    for n, batch in enumerate(batches):
        timers = []
        if n == dies:
            timers.append(threading.Timer(0.5, processes.kill, (processes.endpoints[1],)))
        if n == killed:
            timers.append(threading.Timer(0.5, restart))
        for timer in timers:
            timer.start()
        results = client.score(batch)
        answered += [result.id for result in results] == [item.id for item in batch]
        take(results)
        for timer in timers:
            timer.join()
        print(f"{(n + 1) * BATCH} items, {time.monotonic() - started:.0f} s, {dict(counts)}", flush=True)
    first = dict(counts)
    rounds = 0
    while failed and rounds < 20:
        again, rounds = list(failed), rounds + 1
        failed.clear()
        take(client.score(again))
    client.close()
    return {
        "items": number,
        "seconds": round(time.monotonic() - started, 1),
        "batches_with_every_id_in_place": f"{answered} of {len(batches)}",
        "scored_at_first": number - sum(first.values()),
        "failures_at_first": first,
        "rounds_of_asking_again": rounds,
        "scored_in_the_end": sum(seen[item.id] >= 1 for item in items),
        "scored_wrongly": len(wrong),
        "lost": sum(item.id not in seen for item in items),
        "server_rss_mib": processes.rss_mib(),
        "server_restarts": 1,
        "endpoints_killed": 1,
    } | ({"wrong": wrong[:5]} if wrong else {})


def main() -> None:
    """Run, print, write; exit code 1 when an item was lost or scored wrongly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        processes = Processes(Path(directory))
        try:
            found = soak(options.items, processes)
        except BaseException:
            for log in Path(directory).glob("*.log"):
                sys.stderr.write(f"--- {log.name}\n{log.read_text()[-2000:]}\n")
            raise
        finally:
            processes.close()
    printed = json.dumps(found, indent=2)
    print(printed)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(printed + "\n")
    sys.exit(bool(found["scored_wrongly"] or found["lost"] or found["scored_in_the_end"] < options.items))


if __name__ == "__main__":
    main()
