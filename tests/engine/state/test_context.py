"""Checkpoints and exports under context parallelism: an exact resume, and the same weights in another layout."""

from pathlib import Path

import pytest

from tests.ranks import launch


@pytest.mark.ranks
def test_a_context_parallel_run_resumes_and_moves(tmp_path):
    assert "CONTEXT OK" in launch(Path(__file__).with_name("context_ranks.py"), 2, tmp_path)
