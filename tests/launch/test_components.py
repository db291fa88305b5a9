"""From the config to the numbers of a launcher."""

from rlkd_nemo.config.load import load
from rlkd_nemo.launch.components import Replica, components, replicas


def test_the_loopback_layout():
    cfg = load("rlkd_demo", ["layout=cpu_loopback"])
    trainer, gsrm = components(cfg)
    assert (trainer.name, trainer.nodes, trainer.tasks_per_node, trainer.gpus_per_node) == ("trainer", 2, 1, 0)
    assert (gsrm.name, gsrm.nodes, gsrm.tasks_per_node, gsrm.image) == ("gsrm", 1, 1, "cpu")
    assert replicas(cfg) == []


def test_without_nodes_of_its_own_the_gsrm_is_no_component():
    (trainer,) = components(load("rlkd_demo", ["trainer.num_nodes=3", "trainer.devices=4"]))
    assert (trainer.nodes, trainer.tasks_per_node) == (3, 4)


def test_replicas_fill_nodes_and_never_lie_across_two():
    cfg = load(
        "rlkd_demo",
        [
            "gsrm=vllm", "layout.gsrm={nodes: 2, gpus_per_node: 4}",
            "layout.gsrm.decomposer={replicas: 2, tensor_parallel_size: 3, weights: d}",
            "layout.gsrm.judge={replicas: 1, weights: j}",
        ],
    )  # fmt: skip
    assert replicas(cfg) == [
        Replica("decomposer", 0, (0, 1, 2), 8000, "d"),
        Replica("decomposer", 1, (0, 1, 2), 8001, "d"),
        Replica("judge", 1, (3,), 8100, "j"),
    ]
