import asyncio
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import pytest

# Without the extra none of these modules can be imported; test_extra.py says so.
if not all(map(find_spec, ("httpx2", "uvicorn", "starlette"))):
    collect_ignore = [path.name for path in Path(__file__).parent.glob("test_*.py") if path.name != "test_extra.py"]


@pytest.fixture
def endpoint():
    """Start stand-in endpoints: `endpoint(model=..., faults=...)` gives one, with its address as `url`."""
    from benchmarks.gsrm_endpoint import Behaviour, Endpoint, serving

    with ExitStack() as stack:

        def start(rule=None, **behaviour):
            server = Endpoint(Behaviour(**behaviour), **({"rule": rule} if rule else {}))
            server.url = stack.enter_context(serving(server))
            return server

        yield start


@pytest.fixture
def run():
    """Run a coroutine under a limit."""
    return lambda coroutine, limit_s=240: asyncio.run(asyncio.wait_for(coroutine, limit_s))
