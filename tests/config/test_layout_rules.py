"""The job's layout: what does not fit together is a sentence with its key."""

import pytest

from rlkd_nemo.config.load import load
from rlkd_nemo.config.rules import check

SERVED = [
    "gsrm=vllm",
    "layout.gsrm.nodes=1",
    "layout.gsrm.gpus_per_node=4",
    "layout.gsrm.judge.replicas=2",
    "layout.gsrm.judge.weights=models/judge",
    "layout.gsrm.judge.port=8101",
    "gsrm.llm.judge.urls=[http://127.0.0.1:8101/v1,http://127.0.0.1:8102/v1]",
]


def found(*overrides):
    return check(load("rlkd_demo", overrides))


def test_a_layout_with_its_own_gsrm_is_fine():
    assert found(*SERVED) == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["layout.time_limit=4h"], "layout.time_limit='4h' is no duration"),
        (["layout.signal_s=20000"], "layout.signal_s=20000 is no shorter than layout.time_limit"),
        (["layout.trainer.gpus_per_node=4"], "layout.trainer.gpus_per_node=4, but trainer.devices=2"),
        (["layout.trainer.gpus_per_node=2", "trainer.accelerator=cpu"], "would stand idle"),
        (["layout.gsrm.nodes=1"], "would score nothing, since gsrm.scorer=embedded"),
        ([*SERVED, "layout.gsrm.judge.weights=null"], "layout.gsrm.judge.weights is not set"),
        ([*SERVED, "layout.gsrm.nodes=0"], "leaves no node for them"),
        ([*SERVED, "gsrm.judge=normalised"], "would be asked nothing"),
        ([*SERVED, "layout.gsrm.judge.tensor_parallel_size=3"], "judge 2 of 2 finds no node with 3 free GPUs"),
        ([*SERVED, "layout.gsrm.judge.port=8699"], "layout.gsrm.judge.port + 1 = 8700 is taken by gsrm.server.port"),
        ([*SERVED, "layout.gsrm.judge.port=65535"], "layout.gsrm.judge.port + 1 = 65536 is no port"),
        (
            [*SERVED, "layout.gsrm.judge.replicas=3"],
            "are not the 3 copies that layout.gsrm.judge starts on ports 8101 to 8103",
        ),
        (["layout.trainer.image=docker"], "wanted one of trainer, vllm, cpu"),
    ],
)
def test_what_does_not_fit(overrides, said):
    problems = found(*overrides)
    assert any(said in problem for problem in problems), problems
