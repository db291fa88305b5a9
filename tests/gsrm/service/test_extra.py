"""The tests of this folder want the extra `gsrm`; without it this one is skipped, visibly, and the others are left out."""

import pytest


def test_the_extra_is_installed():
    for name in ("httpx2", "uvicorn", "starlette", "math_verify"):
        pytest.importorskip(name, reason="the extra gsrm is not installed: pip install 'rlkd_nemo[gsrm]'")
