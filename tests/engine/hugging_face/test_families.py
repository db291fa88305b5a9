"""Every family on real ranks: transformers' log-probs, the sampler's, gradients, and back without a changed bit."""

from pathlib import Path

import pytest
import torch

from rlkd_nemo.engine.model.families import families
from tests.engine.hugging_face.hugging_models import IDS, MODELS, log_probs, make
from tests.ranks import launch

SCRIPT = Path(__file__).with_name("families_ranks.py")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    wanted = {name: (IDS, make(name, root / name)) for name in MODELS}
    torch.save(wanted, root / "wanted.pt")
    out = launch(SCRIPT, 1, 1, 1, root)
    assert "FAMILIES HOLD" in out
    return root


def test_every_family_has_a_model_here():
    assert {name.partition("_")[0] for name in MODELS} == set(families())


def test_transformers_reads_an_export(root):
    wanted = torch.load(root / "wanted.pt")
    exports = [name for name in MODELS if (root / f"{name}-1-1").is_dir()]
    assert len(exports) >= 4
    for name in exports:
        assert float((log_probs(root / f"{name}-1-1") - wanted[name][1]).abs().max()) <= 1e-6, name


@pytest.mark.ranks
@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2), (2, 2)])
def test_every_family_in_every_layout(root, tp, pp):
    assert "FAMILIES HOLD" in launch(SCRIPT, tp * pp, tp, pp, root)
