"""A virtual pipeline of two stages with two pieces each: wrong by Megatron's defaults, exact by ours."""

import json
from pathlib import Path

import pytest

from tests.ranks import launch

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    directory = tmp_path_factory.mktemp("virtual")
    launch(Path(__file__).with_name("virtual_pipeline_ranks.py"), 2, directory)
    return json.loads((directory / "seen.json").read_text())


def test_megatrons_default_messages_give_another_loss_without_a_word(seen):
    loss, gradient, log_prob = seen["megatron_defaults"]
    assert loss > 1e-4
    assert gradient > 1.0
    assert log_prob > 0.1


@pytest.mark.parametrize("case", ["virtual", "tied"])
def test_loss_gradients_and_log_probs_are_those_of_one_stage(seen, case):
    assert max(seen[case]) < 1e-5


def test_bf16_is_as_near_as_bf16_is(seen):
    loss, _, log_prob = seen["bf16"]
    assert loss < 1e-3
    assert log_prob < 0.05


def test_a_resume_continues_to_the_last_digit(seen):
    assert seen["resumed_exactly"]


def test_its_checkpoint_is_read_by_a_plain_pipeline(seen):
    assert seen["into_a_plain_pipeline"] < 1e-5
    assert seen["continued_there"] < 1e-4


def test_export_and_import(seen):
    assert seen["hugging_face_round_trip"] == 0.0
    assert seen["hugging_face_on_one_stage"] < 1e-5


def test_the_sampler_gets_every_layer_in_its_place(seen):
    assert seen["sampler"]
