"""Checkpoints under two real ranks: one launch that dies while saving, then one that does everything else."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.ranks import PATIENCE_S

HERE = Path(__file__).parent
pytestmark = pytest.mark.ranks


def two_ranks(script, *args):
    # Not tests.ranks.launch: one of these scripts is meant to die.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[2])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(HERE / script), *map(str, args)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """What a job that died in its second save left behind."""
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    process = two_ranks("killed_save_ranks.py", directory)
    entries = {path.name: sorted(p.name for p in path.iterdir()) for path in directory.iterdir()}
    return SimpleNamespace(directory=directory, process=process, entries=entries)


@pytest.fixture(scope="module")
def seen(killed, tmp_path_factory):
    """Results of the long script, run in the directory of the killed job."""
    results = tmp_path_factory.mktemp("results") / "seen.json"
    process = two_ranks("checkpoint_ranks.py", killed.directory, results)
    assert process.returncode == 0, process.stderr[-4000:]
    return SimpleNamespace(**json.loads(results.read_text()), directory=killed.directory)


def close(got, wanted, tolerance):
    return len(got) == len(wanted) and all(abs(a - b) <= tolerance * max(1, abs(b)) for a, b in zip(got, wanted))


def flat(rows):
    return [number for row in rows for number in row]


def test_a_rank_killed_while_saving_leaves_only_a_tmp(killed):
    assert f"Signal {signal.SIGKILL.value}" in killed.process.stderr or "SIGKILL" in killed.process.stderr
    assert set(killed.entries) == {"step-000001", "step-000002.tmp"}
    assert "__1_0.distcp" in killed.entries["step-000002.tmp"]  # it died with its file open
    assert "meta.json" not in killed.entries["step-000002.tmp"]


def test_the_next_save_removes_the_tmp_and_says_so(seen):
    assert [Path(message.split()[1].rstrip(",")).name for message in seen.leftover] == ["step-000002.tmp"]
    assert not (seen.directory / "step-000002.tmp").exists()


def test_resume_equals_uninterrupted_to_the_last_digit(seen):
    assert seen.resumed == seen.uninterrupted  # loss, gradient norm and learning rate of three updates
    assert seen.updates == 3
    assert seen.extra == {"step": 3, "position": 24, "best": 0.1 + 0.2}
    assert seen.quiet == []


def test_resume_restores_every_random_number_generator(seen):
    assert seen.drawn_again == seen.drawn
    assert seen.drawn[0] != seen.drawn[1]  # rank by rank: the two had drawn different numbers


def test_data_parallel_resume_is_exact(seen):
    assert seen.data_resumed == seen.data_uninterrupted


def test_resume_before_the_first_update(seen):
    assert seen.resumed_first_update == seen.before_first_update


def test_bf16_resumes_with_its_master_weights(seen):
    assert seen.bf16_weights  # fp32 weights load rounded to bf16
    assert seen.bf16_resume_gap == 0.0


def test_weights_only_leaves_the_training_state_alone(seen):
    log_probs, updates, has_optimizer_state = seen.weights_only
    assert log_probs == seen.log_probs != seen.fresh_log_probs
    assert updates == 0
    assert not has_optimizer_state


@pytest.mark.parametrize("layout", ["pipeline", "data"])
def test_tensor_parallel_checkpoint_continues_under_another_layout(seen, layout):
    log_probs, training = getattr(seen, layout)
    assert close(log_probs, seen.log_probs, 1e-5)
    assert close(flat(training), flat(seen.uninterrupted), 1e-5)
    assert len(seen.layout_warning) == 1
    assert "random numbers start anew" in seen.layout_warning[0]


def test_data_parallel_weights_under_tensor_parallelism(seen):
    got, wanted = seen.data_to_tensor
    assert close(got, wanted, 1e-5)


def test_current_settings_win_and_the_difference_is_named(seen):
    assert seen.changed_warning == ["resuming with other settings than the checkpoint's: betas, max_lr"]
    assert seen.changed_betas == [0.8, 0.9]
    assert seen.changed_lr == pytest.approx(seen.uninterrupted[0][2] / 2)  # lr 5e-3 instead of 1e-2, same update


def test_frozen_and_bare_models_share_weights(seen):
    got, wanted = seen.bare
    assert got == wanted
    assert seen.frozen_content == "weights"


def test_a_checkpoint_of_the_same_step_is_replaced(seen):
    assert seen.replaced == [["step-000000", "step-000001"], 1.0]


def test_a_full_disk_is_the_same_error_everywhere_and_harms_nothing(seen):
    assert "step 4 was not written" in seen.full_on_worker
    assert "rank 1: OSError: [Errno 27] File too large" in seen.full_on_worker
    assert "MiB are free" in seen.full_on_worker
    assert "rank 0: OSError: [Errno 27] File too large" in seen.full_on_main
    assert "rank 0: OSError: [Errno 27] File too large" in seen.full_at_the_end
    assert "rank 0: NotADirectoryError" in seen.not_a_directory
    assert seen.after_full_disk == ["step-000001", "step-000003"]
    assert seen.unharmed


def test_damaged_checkpoints_are_passed_over_loudly_and_kept(seen):
    assert seen.fell_back_to == {"step": 4}
    assert seen.after_fall_back == ["step-000004", *(f"step-00000{step}.damaged" for step in range(5, 10))]
    (entry,) = seen.resumes
    assert entry["resumed_from"] == "step-000004"
    assert [e["skipped_checkpoint"] for e in entry["skipped"]] == [f"step-00000{step}" for step in range(9, 4, -1)]
    why = [e["why"] for e in entry["skipped"]]
    assert "rank 0: OSError: common.pt has other contents than were written" in why[0]
    assert "has no meta.json" in why[1] and "cannot be read" in why[2]
    assert "__0_0.distcp is missing" in why[3] and "__1_0.distcp has 100 bytes, wanted" in why[4]


def test_a_damaged_checkpoint_that_was_named_is_an_error(seen):
    assert "step-000009 cannot be read: rank 0: OSError: common.pt" in seen.named_and_damaged


def test_a_run_without_a_whole_checkpoint_never_starts_anew_by_itself(seen):
    for message in (seen.none_is_whole, seen.still_none):
        assert "is whole" in message and "exp_manager.resume_if_exists=false" in message


def test_an_asynchronous_save_holds_what_a_synchronous_one_does(seen):
    busy, done, there = seen.while_writing
    assert busy and not done and there == ["step-000002.tmp"]  # unpublished while training goes on
    sync, background = seen.sync_and_async
    assert sync == background and len(sync) == 5  # sizes and sums of every file, though the weights had moved on
    assert seen.after_writing == [False, ["step-000002"]]


def test_a_failed_asynchronous_save_is_the_same_error_everywhere_and_harms_nothing(seen):
    assert "step 3 was not written" in seen.background_failed
    assert "rank 1: OSError: [Errno 27] File too large" in seen.background_failed
    assert "MiB are free" in seen.background_failed
    assert seen.after_failure == [False, ["step-000002"]]


def test_meta_tells_what_a_person_wants_to_know(seen):
    assert seen.meta["step"] == seen.meta["updates"] == 3
    assert seen.meta["layout"] == {"tensor": 2, "pipeline": 1, "data": 1}
    assert seen.meta["architecture"]["kv_channels"] == 8  # 32 / 4
    assert seen.meta["vocabulary"]["size"] == 19
    assert seen.meta["metric"] == 0.5
    assert {"torch", "megatron-core", "rlkd_nemo"} <= set(seen.meta["versions"])


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("missing", ["no checkpoint at", "step-000007", "step-000001, step-000003"]),
        ("missing_directory", ["nowhere does not exist"]),
        ("directory_of_checkpoints", ["is not a checkpoint", "step-000001, step-000003"]),
        ("architecture", ["another model", "ffn_hidden_size 48, wanted 64", "rotary_base 10000.0, wanted 500000.0"]),
        ("vocabulary_size", ["vocabulary 19, wanted 23"]),
        ("vocabulary_pieces", ["another vocabulary", "model.tokenizer"]),
        ("precision", ["float32, wanted bfloat16", "trainer.precision"]),
        ("weights_as_training", ["holds weights only", "model.restore_from_path"]),
        ("damaged", ["cannot be read", "rank 1"]),
    ],
)
def test_what_cannot_be_loaded_is_refused_alike_on_every_rank(seen, name, parts):
    message = getattr(seen, name)
    assert not message.startswith("ranks differ"), message
    for part in parts:
        assert part in message
