"""What the GSRM server itself costs: items a second with everything cached, time added to an item, memory.

The scoring core is a stand-in that only waits (0 or `--latency` seconds), so that all else is the server's. Server and
client are processes of their own on this machine; the client keeps 64 requests of one item in flight.

    python benchmarks/gsrm_overhead.py --items 100000 --out benchmarks/results/gsrm_overhead.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import statistics
import tempfile
import time
from pathlib import Path

import aiohttp
import psutil

from rlkd_nemo.config.schema import GsrmServer
from rlkd_nemo.gsrm.service.app import GsrmApp
from rlkd_nemo.gsrm.service.core import BackendState, Item, Result
from rlkd_nemo.gsrm.service.registry import ReferenceRegistry
from rlkd_nemo.gsrm.service.serve import GsrmWebServer
from rlkd_nemo.types import Step

CONCURRENCY = 64
STEPS = tuple(Step(f"choose what to work out next, number {n}", f"what is part {n}?", str(n)) for n in range(8))
TEXT = "\n".join(f"[Meta-reasoning {n}]: {s.meta}\n[Sub-problem {n}]: {s.question}" for n, s in enumerate(STEPS))


class Waits:
    """A core that takes the seconds that the response begins with, and answers as a scored item of 8 steps does."""

    version = "waits-1"

    async def start(self) -> None:
        """Nothing to reach."""

    async def score(self, item: Item, *, deadline_s: float) -> Result:
        """After the asked wait."""
        await asyncio.sleep(float(item.response.split(" ", 1)[0]))
        verdicts = tuple({"student": n, "teacher": n, "meta": True, "question": True, "answer": True} for n in range(8))
        return Result(item.id, "ok", 1.0, 8, STEPS, STEPS, verdicts)

    async def decompose(self, problem: str, text: str, domain: str | None = None) -> list[Step]:
        """Not asked here."""
        return list(STEPS)

    def backends(self) -> list[BackendState]:
        """None."""
        return []

    def unavailable(self) -> str | None:
        """Always there."""
        return None

    async def aclose(self) -> None:
        """Nothing to close."""


def server(port: multiprocessing.Queue) -> None:
    """The server's process."""

    async def run() -> None:
        with tempfile.TemporaryDirectory() as directory:
            app = GsrmApp(
                Waits(), GsrmServer(port=0, concurrency=256, cache_bytes=64 << 20), ReferenceRegistry(directory)
            )
            web = GsrmWebServer(app)
            task = asyncio.ensure_future(web.serve())
            while not web.started:
                await asyncio.sleep(0.01)
            port.put(web.servers[0].sockets[0].getsockname()[1])
            await task

    import uvloop

    uvloop.run(run())


async def load(url: str, bodies: list[bytes]) -> tuple[float, list[tuple[int, float]]]:
    """All bodies, 64 at a time. Returns seconds in all, and (place, seconds) of each."""
    left, times = iter(enumerate(bodies)), []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENCY)) as session:

        async def worker() -> None:
            for number, body in left:
                started = time.perf_counter()
                async with session.post(url, data=body, headers={"content-type": "application/json"}) as answer:
                    text = await answer.read()
                    assert answer.status == 200 and b'"reward":1.0' in text, text
                times.append((number, time.perf_counter() - started))

        started = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
        return time.perf_counter() - started, times


def body(name: str, wait: float) -> bytes:
    """One item of about 1.5 KB; `name` makes it distinct."""
    response = f"{wait} {name} <think>{TEXT}</think>"
    item = {"id": name, "problem": "the same for all", "response": response, "references": [TEXT]}
    return json.dumps({"items": [item]}).encode()


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000, help="distinct items of the memory part")
    parser.add_argument("--latency", type=float, default=1.0, help="seconds an item takes in the stand-in core")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    port: multiprocessing.Queue = multiprocessing.Queue()
    process = multiprocessing.Process(target=server, args=(port,), daemon=True)
    process.start()
    url = f"http://127.0.0.1:{port.get(timeout=30)}/score"
    seen = psutil.Process(process.pid)

    cached = [body(f"c{n % 256}", 0) for n in range(10_000)]
    asyncio.run(load(url, cached[:256]))
    cpu = seen.cpu_times().user + seen.cpu_times().system
    seconds, _ = asyncio.run(load(url, cached))
    cpu = seen.cpu_times().user + seen.cpu_times().system - cpu
    found = {
        "cached_items_per_s": round(len(cached) / seconds),
        "cached_server_cpu_ms_per_item": round(1000 * cpu / len(cached), 3),
    }
    instant = [body(f"i{n}", 0) for n in range(5_000)]
    seconds, _ = asyncio.run(load(url, instant))
    found["new_items_ms_per_item"] = round(1000 * seconds / len(instant), 3)
    # Waits of half to one and a half of the latency, as models' replies have: in step, 64 items would end at once.
    picker = random.Random(0)
    waits = [options.latency * picker.uniform(0.5, 1.5) for _ in range(8 * CONCURRENCY)]
    _, times = asyncio.run(load(url, [body(f"l{n}", wait) for n, wait in enumerate(waits)]))
    added = sorted(taken - waits[n] for n, taken in times)
    found["added_ms_median_at_64"] = round(1000 * statistics.median(added), 2)
    sizes = []
    for start in range(0, options.items, 10_000):
        part = [body(f"m{n}", 0) for n in range(start, min(start + 10_000, options.items))]
        asyncio.run(load(url, part))
        sizes.append(round(seen.memory_info().rss / 2**20, 1))
    found["rss_mib_each_10000_items"] = sizes
    process.terminate()
    text = json.dumps(found, indent=2)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
