import asyncio
from contextlib import ExitStack

import pytest

pytest.importorskip("httpx2", reason="the extra gsrm is not installed")
pytest.importorskip("uvicorn", reason="the extra gsrm is not installed")

from benchmarks.gsrm_endpoint import Behaviour, Endpoint, serving


@pytest.fixture
def endpoint():
    """Start stand-in endpoints: `endpoint(model=..., faults=...)` gives one, with its address as `url`."""
    with ExitStack() as stack:

        def start(rule=None, **behaviour):
            server = Endpoint(Behaviour(**behaviour), **({"rule": rule} if rule else {}))
            server.url = stack.enter_context(serving(server))
            return server

        yield start


@pytest.fixture
def run():
    """Run a coroutine under a limit."""
    return lambda coroutine, limit_s=60: asyncio.run(asyncio.wait_for(coroutine, limit_s))
