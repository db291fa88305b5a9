"""For every test: one thread, a fixed seed, no GPU unless the test is marked for one."""

import os
import random
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests.ranks import launch


@pytest.fixture(autouse=True)
def _seeded(request):
    random.seed(0)
    try:
        import numpy
        import torch
    except ImportError:
        return
    numpy.random.seed(0)
    torch.manual_seed(0)
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture
def run_ranks():
    """`run_ranks(script, n, *args)`: a script on n real ranks; its stdout."""
    return launch


def pytest_collection_modifyitems(items):
    if shutil.which("nvidia-smi"):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU; this machine has none"))
