"""The shipped training example on CPU ranks: its command line for the tiny models, and what a run logged."""

from tests.aligner import nemo_python as nemo

EXAMPLE = nemo.ROOT / "examples" / "aligner" / "train_gpt_rlkd_actor.py"


def arguments(models, folder, port, ranks, **changes):
    """Hydra overrides of a short run on CPU ranks; dotted keys in `changes`."""
    held_out = [str(models / "validation.jsonl")]
    data = {"train": [str(models / "train.jsonl")], "validation": held_out, "test": held_out}
    keys = {
        "trainer.devices": ranks, "trainer.num_nodes": 1, "trainer.accelerator": "cpu", "trainer.precision": 32,
        "trainer.reinforce.max_epochs": 4, "trainer.reinforce.max_steps": 12, "trainer.reinforce.val_check_interval": 1,
        "trainer.reinforce.save_interval": 6, "trainer.reinforce.rlkd.epochs": 2, "trainer.reinforce.num_rollouts_per_prompt": 8,
        "remote_rm.reward_model.port": port, "remote_rm.pad_to_length": "null", "remote_rm.ready_timeout_s": 120,
        "remote_rm.request_timeout_s": 300, "teacher.restore_from_path": models / "teacher.nemo",
        "pretrained_checkpoint.restore_from_path": models / "student.nemo", "exp_manager.explicit_log_dir": folder,
        "exp_manager.checkpoint_callback_params.save_nemo_on_train_end": False,
        "model.reinforce.num_rollout_samples": 16, "model.reinforce.rollout_micro_batch_size": 8,
        "model.reinforce.forward_micro_batch_size": 32, "model.reinforce.num_val_samples": 64,
        "model.reinforce.val_rollout_micro_batch_size": 32, "model.reinforce.length_params.max_length": 12,
        "model.reinforce.offload_adam_states": False, "model.reinforce.sampling_params.end_strings": "['<eos>']",
        "model.micro_batch_size": 16, "model.global_batch_size": 64, "model.megatron_amp_O2": False,
        "model.encoder_seq_length": 32, "model.optim.name": "cpu_adam", "model.optim.lr": 4e-4,
        "model.optim.weight_decay": 0.0, "model.optim.sched.warmup_steps": 0, "model.optim.sched.min_lr": 3.9e-4,
        "model.data.data_prefix": str(data).replace("'", ""),
    }  # fmt: skip
    keys.update(changes)
    gone = [f"~model.optim.{key}" for key in ("bucket_cap_mb", "overlap_grad_sync", "contiguous_grad_buffer")]
    return [*(f"{key}={value}" for key, value in keys.items()), *gone]


def train(models, folder, port, *, ranks=1, code=0, timeout=800, die_at=None, **changes):
    """Output of the run."""
    more = {"RLKD_TEST_DIE_AT": str(die_at)} if die_at else {}
    command = [EXAMPLE, *arguments(models, folder, port, ranks, **changes)]
    return nemo.launch(nemo.HERE / "run_example.py", ranks, *command, timeout=timeout, code=code, **more)


def logged(folder):
    """{name: {step: value}} of all that a run and its continuations logged, times left out; the last word counts.

    NeMo moves the files of an interrupted run into a folder of their own.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = {}
    for file in sorted(folder.rglob("events.*"), key=lambda path: path.stat().st_mtime):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        for name in events.Tags()["scalars"]:
            if not name.startswith("timers/"):
                out.setdefault(name, {}).update({event.step: event.value for event in events.Scalars(name)})
    return out
