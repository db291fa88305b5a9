import subprocess

import pytest

from tests.aligner import nemo_python as nemo


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """Folder of the tiny tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    subprocess.run(
        [nemo.PYTHON, "-c", "import sys, tiny; tiny.make_tokenizer(sys.argv[1])", str(folder)],
        env=nemo.environment(PYTHONPATH=str(nemo.HERE)), check=True, timeout=120,
    )  # fmt: skip
    return folder
