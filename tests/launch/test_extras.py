"""A library that is not installed is one sentence with the extra that brings it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlkd_nemo.launch.extras import EXTRAS, advice

ROOT = Path(__file__).parents[2]


def test_the_modules_are_those_of_setup_py():
    listed = re.search(r"^GSRM = \[(.*?)\]", (ROOT / "setup.py").read_text(), re.DOTALL | re.MULTILINE)[1]
    assert sorted(re.findall(r'"([\w-]+)', listed.replace("-", "_"))) == sorted(EXTRAS["gsrm"])


def test_another_module_has_no_advice():
    assert advice(ModuleNotFoundError("no", name="rlkd_nemo.absent")) is None
    assert "rlkd_nemo[gsrm]" in advice(ModuleNotFoundError("no", name="uvicorn.config"))


@pytest.mark.parametrize("example", ["serve_gsrm", "label_gsrm_data"])
def test_an_example_without_the_extra_says_what_to_install(example):
    # None in sys.modules: what an import finds where there is no such module.
    program = (
        "import runpy, sys; sys.modules['uvicorn'] = sys.modules['httpx2'] = None; "
        f"sys.argv = ['{example}.py']; runpy.run_path('examples/{example}.py', run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 2
    assert re.fullmatch(
        r"\w+ is not installed, which this command needs; pip install 'rlkd_nemo\[gsrm\]'\n", ended.stderr
    )
