"""One store, several processes: each reference is made once, and whoever is killed leaves nothing half-written."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlkd_nemo.errors import ServiceError
from rlkd_nemo.gsrm.references import ReferenceStore
from rlkd_nemo.types import Step

ROOT = Path(__file__).resolve().parents[2]
# Makes reference number 0, 1, ... of the store in argv[1], argv[2] of them; says which it made itself.
MAKER = """
import asyncio, sys
from rlkd_nemo.gsrm.references import ReferenceStore
from rlkd_nemo.types import Step

async def main(store, number):
    for i in range(number):
        async def make():
            print(i, flush=True)
            await asyncio.sleep(0.005)
            return [Step("m" * 200_000, str(i), None)]
        await store.steps_from("v", "p", str(i), make)

asyncio.run(main(ReferenceStore(sys.argv[1]), int(sys.argv[2])))
"""


def maker(directory, number):
    return subprocess.Popen(
        [sys.executable, "-c", MAKER, str(directory), str(number)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_make_each_reference_once(tmp_path):
    processes = [maker(tmp_path, 20) for _ in range(2)]
    made = [line for process in processes for line in process.communicate(timeout=240)[0].split()]
    assert sorted(map(int, made)) == list(range(20)) and not list(tmp_path.rglob("*.lock"))


def test_killed_in_the_middle_of_a_write(tmp_path):
    process = maker(tmp_path, 10_000)
    deadline = time.monotonic() + 240
    while sum(1 for _ in tmp_path.rglob("*.json")) < 20 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    last = int(process.communicate(timeout=240)[0].split()[-1])
    entries = [json.loads(path.read_text()) for path in tmp_path.rglob("*.json")]  # all of them whole
    assert len(entries) >= 20 and process.returncode == -signal.SIGKILL
    # Another process goes on where it was, the lock of the dead one being gone.
    made = maker(tmp_path, last + 3).communicate(timeout=240)[0].split()
    assert [str(last + 1), str(last + 2)] == made[-2:] and len(made) <= 3


def test_a_failure_is_not_stored(tmp_path):
    store = ReferenceStore(tmp_path)

    async def broken():
        raise ServiceError("down")

    async def works():
        return [Step("m")]

    async def both():
        with pytest.raises(ServiceError):
            await store.steps_from("v", "p", "t", broken)
        return await store.steps_from("v", "p", "t", works)

    assert asyncio.run(both()) == [Step("m")] and len(list(tmp_path.rglob("*.json"))) == 1
    assert not list(tmp_path.rglob("*.lock"))


def test_after_a_failure_one_takes_over_and_not_two(tmp_path):
    making, most, made = 0, 0, []

    async def work():
        failing = asyncio.Event()

        async def fails():
            await failing.wait()
            raise ServiceError("down")

        async def make():
            nonlocal making, most
            making += 1
            most = max(most, making)
            await asyncio.sleep(0.3)  # the one that waits looks again meanwhile
            making -= 1
            made.append(1)
            return [Step("m")]

        def ask(how):  # each a process of its own, as far as files and locks go
            return asyncio.ensure_future(ReferenceStore(tmp_path).steps_from("v", "p", "t", how))

        first = ask(fails)
        await asyncio.sleep(0)
        waits = ask(make)
        await asyncio.sleep(0)
        failing.set()
        with pytest.raises(ServiceError):
            await first
        comes = ask(make)
        return await asyncio.gather(waits, comes)

    assert asyncio.run(work()) == [[Step("m")]] * 2 and most == len(made) == 1
    assert not list(tmp_path.rglob("*.lock"))


def test_trees_and_steps_are_shared_with_the_other_way_in(tmp_path):
    class Decomposer:
        version = "v"

        def decompose(self, problem, text):
            return [Step("m", None, "a")]

    ReferenceStore(tmp_path).steps("p", "t", Decomposer())

    async def never():
        raise AssertionError("it is there already")

    assert asyncio.run(ReferenceStore(tmp_path).steps_from("v", "p", "t", never)) == [Step("m", None, "a")]
