"""The distributed optimizer: the same updates as the undivided one, and exact resumes, where Megatron's own are not."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.ranks import launch

SCRIPT = Path(__file__).with_name("distributed_ranks.py")
pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What two ranks saw, and then one that reads what they saved."""
    root = tmp_path_factory.mktemp("distributed")
    results = {}
    for ranks in (2, 1):
        launch(SCRIPT, ranks, root, root / "seen.json")
        results |= json.loads((root / "seen.json").read_text())
    return SimpleNamespace(**results)


def close(got, wanted, tolerance=1e-5):
    return all(
        math.isclose(a, b, rel_tol=tolerance)
        for row, wanted_row in zip(got, wanted, strict=True)
        for a, b in zip(row, wanted_row, strict=True)
    )


@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("optimizer", ["gradients", "distributed", "overlapped"])
def test_the_same_updates_as_the_undivided_optimizer(seen, optimizer, precision):
    numbers, log_probs, gap = getattr(seen, f"{optimizer}_{precision}")
    wanted, wanted_log_probs, _ = getattr(seen, f"plain_{precision}")
    assert close(numbers, wanted)  # loss, gradient norm, learning rate of four updates
    # Two ranks' sums may differ in the last bit, which rounding to bf16 can turn into one of its steps.
    tolerance = 2e-5 if precision == "32" else 0.02
    assert gap <= tolerance
    assert max(abs(a - b) for a, b in zip(log_probs, wanted_log_probs, strict=True)) <= tolerance


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_overlapped_weights_arrive_late_and_are_settled(seen, precision):
    buckets, equal = getattr(seen, f"settled_{precision}")
    assert buckets > 10
    assert not equal  # without settling, the other rank's share would be an update old


def test_megatron_does_not_wait_for_the_output_layer(seen):
    # It is not called as a module: its bucket is asked for twice. Without assertions its weights would be old.
    assert seen.does_not_wait == "AssertionError()"
    assert close(seen.waits, seen.plain_32[0][:3])


@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("optimizer", ["distributed", "overlapped"])
def test_resume_equals_uninterrupted_to_the_last_digit(seen, optimizer, precision):
    # Loss, gradient norm and learning rate of three updates, and the sum of the weights after them.
    uninterrupted = getattr(seen, f"{optimizer}_{precision}_uninterrupted")
    assert getattr(seen, f"{optimizer}_{precision}_resumed") == uninterrupted


def test_resume_before_the_first_update(seen):
    assert seen.fresh_resumed == seen.fresh_uninterrupted


@pytest.mark.parametrize("where", ["tp2", "one_rank"])
@pytest.mark.parametrize("reader", ["distributed", "overlapped"])
@pytest.mark.parametrize("writer", ["distributed", "overlapped"])
def test_another_layout_and_other_buckets_continue(seen, writer, reader, where):
    uninterrupted, _ = getattr(seen, f"{writer}_32_uninterrupted")
    assert close(getattr(seen, f"{writer}_to_{reader}_{where}"), uninterrupted)


@pytest.mark.parametrize("optimizer", ["distributed", "overlapped"])
def test_two_stages_with_tied_embeddings(seen, optimizer):
    got = getattr(seen, f"tied_{optimizer}")
    assert close(got, seen.tied_plain)
    assert getattr(seen, f"tied_{optimizer}_resumed") == got


def test_megatron_fault_the_template_of_a_never_stepped_optimizer(seen):
    assert seen.sharded_state_dict == "AssertionError()"


def test_megatron_fault_a_step_that_was_never_stored(seen):
    assert seen._set_main_param_and_optimizer_states == "KeyError('step')"


def test_megatron_fault_one_step_for_all_parameters(seen):
    parameters, tensors = seen.shared["parameters"], seen.shared["tensors"]
    assert parameters > tensors == 1
    assert seen.shared["before"] == 3
    assert seen.shared["after"] == 3 + 3 * parameters  # three updates
    uninterrupted, _ = seen.distributed_32_uninterrupted
    assert seen.shared_resumed[0] == uninterrupted[0]  # silent at first
    assert not close(seen.shared_resumed[1:], uninterrupted[1:], tolerance=1e-3)


def test_megatron_fault_gaps_between_buckets(seen):
    (_, grad_norm, _), wanted = seen.shifted_resumed[0], seen.overlapped_32_uninterrupted[0][0]
    assert grad_norm > 10 * wanted[1]


@pytest.mark.parametrize(
    ("case", "kind", "found", "wanted"),
    [
        ("distributed_to_plain", "a distributed", "false", "true"),
        ("plain_to_distributed", "an undivided", "true", "false"),
    ],
)
def test_an_optimizer_of_the_other_kind_is_refused_with_the_key(seen, case, kind, found, wanted):
    said = getattr(seen, case)
    assert f"holds the state of {kind} optimizer, found model.optim.use_distributed_optimizer={found}" in said
    assert f"wanted {wanted}, or a start from its weights with model.restore_from_path" in said and "\n" not in said


@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("optimizer", ["plain", "distributed"])
def test_states_leave_and_come_back(seen, optimizer, precision):
    case = getattr(seen, f"offload_{optimizer}_{precision}")
    # Two moments a parameter, and the master where the model does not have it itself.
    assert case["places"] == case["parameters"] * (2 if precision == "32" else 3) > 0
    assert case["moved"] and case["left behind"] == 0 and case["same bits"]
    assert case["model stays"] and case["samples"]
    assert case["next"] == getattr(seen, f"{optimizer}_{precision}")[0][2:]  # updates 3 and 4, to the last digit


def test_offloading_on_cpu_ranks_is_refused(seen):
    assert "model.optim.offload_states=true" in seen.offload_on_cpu
    assert "CPU ranks" in seen.offload_on_cpu


@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("optimizer", ["plain", "distributed", "overlapped"])
def test_nan_gradients(seen, optimizer, precision):
    case = getattr(seen, f"nan_{optimizer}_{precision}")
    # Megatron alone: a step that reports success and leaves NaN in the weights.
    assert case["success"] and math.isnan(case["norm"]) and case["poisoned"] > 0
    # Ours: refused by name, with every weight as it was, and able to go on.
    assert case["gradient"].startswith("non-finite gradient in micro-batch 1 of 2 on rank 0")
    assert case["loss"].startswith("non-finite loss in micro-batch 1 of 2 on rank 0")
    assert case["unharmed"] and math.isfinite(case["goes_on"])
