"""RLKD and RLAD by NeMo-Aligner's own trainer: its REINFORCE script with another actor, trainer and reward client."""

from rlkd_nemo.aligner.compat import begin

if __name__ == "__main__":
    begin(__doc__)

from functools import partial

import torch
import torch.multiprocessing as mp
from megatron.core.utils import divide
from nemo.core.config import hydra_runner
from nemo.utils import logging
from nemo.utils.exp_manager import exp_manager
from nemo_aligner.data.nlp.builders import (
    build_dataloader,
    build_train_valid_test_rlhf_datasets,
    collate_with_pad_to_max_batch,
)
from nemo_aligner.utils import parallel_state
from nemo_aligner.utils.batch_iterators import get_batch_iterator_cls
from nemo_aligner.utils.distributed import Timer
from nemo_aligner.utils.train_script_utils import (
    CustomLoggerWrapper,
    add_custom_checkpoint_callback,
    extract_optimizer_scheduler_from_ptl_model,
    init_distributed,
    init_peft,
    init_using_ptl,
    resolve_and_create_trainer,
)
from nemo_aligner.utils.utils import load_from_nemo, retrieve_model_state_dict_in_cpu
from omegaconf.omegaconf import OmegaConf

from rlkd_nemo.aligner import GSRMRewardClient, MegatronGPTRLKDActorModel, RLKDTrainer
from rlkd_nemo.aligner.checkpoint import load_model_config
from rlkd_nemo.aligner.compat import exiting
from rlkd_nemo.aligner.teacher import load_teacher
from rlkd_nemo.aligner.trainer import retrieve_rlkd_trainer_state_dict
from rlkd_nemo.config.aligner import read, read_remote
from rlkd_nemo.config.aligner_groups import register
from rlkd_nemo.config.objectives import needs_teacher

OmegaConf.register_new_resolver("multiply", lambda x, y: x * y, replace=True)
OmegaConf.register_new_resolver("int_div", lambda x, y: x // y, replace=True)
OmegaConf.register_new_resolver("subtract", lambda x, y: x - y, replace=True)

mp.set_start_method("spawn", force=True)
register()


@hydra_runner(config_path="../../conf/aligner", config_name="gpt_rlkd_actor")
@exiting
def main(cfg) -> None:
    """Every rank runs it."""
    _, _, objective = read(cfg.trainer.reinforce.get("rlkd"))  # wrong settings are told before anything is loaded
    read_remote(cfg.remote_rm)
    cfg.model = load_model_config(cfg.pretrained_checkpoint.restore_from_path, cfg.model)

    logging.info("\n\n************** Experiment configuration ***********")
    logging.info(f"\n{OmegaConf.to_yaml(cfg)}")

    trainer = resolve_and_create_trainer(cfg, "reinforce")
    exp_manager(trainer, cfg.exp_manager)
    logger = CustomLoggerWrapper(trainer.loggers)

    ptl_model = load_from_nemo(
        MegatronGPTRLKDActorModel,
        cfg.model,
        trainer,
        strict=True,
        restore_path=cfg.pretrained_checkpoint.restore_from_path,
    )
    init_peft(ptl_model, cfg.model)

    init_policy_state_dict = None

    # The start weights, for a KL to them; adapters keep them beneath.
    if objective.reference_kl > 0 and cfg.model.peft.peft_scheme == "none":
        init_policy_state_dict = retrieve_model_state_dict_in_cpu(
            ptl_model, megatron_amp_O2=cfg.model.get("megatron_amp_O2", False)
        )

    ptl_model.init_policy_state_dict = init_policy_state_dict

    trainer_restore_path = trainer.ckpt_path
    if trainer_restore_path is not None:  # noqa: SIM108 - as NeMo-Aligner has it
        custom_trainer_state_dict = retrieve_rlkd_trainer_state_dict(trainer)
    else:
        custom_trainer_state_dict = None

    init_distributed(trainer, ptl_model, cfg.model.get("transformer_engine", False))

    train_valid_test_num_samples = [-1, -1, -1]  # all of each
    train_ds, validation_ds, _ = build_train_valid_test_rlhf_datasets(
        cfg=cfg.model,
        data_prefix=cfg.model.data.data_prefix,
        data_impl=cfg.model.data.data_impl,
        splits_string=cfg.model.data.splits_string,
        train_valid_test_num_samples=train_valid_test_num_samples,
        seq_length=cfg.model.data.seq_length,
        seed=cfg.model.seed,
        tokenizer=ptl_model.tokenizer,
    )

    max_seqlen = cfg.model.reinforce.length_params.max_length
    eos_id = ptl_model.tokenizer.eos_id
    collate_fn = collate_with_pad_to_max_batch(max_seqlen, eos_id, cfg, generate_masks_and_position_ids=False)

    train_dataloader_builder = partial(
        build_dataloader,
        cfg=cfg,
        dataset=train_ds,
        mbs=cfg.model.reinforce.rollout_micro_batch_size,
        gbs=cfg.model.reinforce.num_rollout_samples,
        collate_fn=collate_fn,
        load_gbs=False,
    )
    val_dataloader_builder = partial(
        build_dataloader,
        cfg=cfg,
        dataset=validation_ds,
        mbs=cfg.model.reinforce.val_rollout_micro_batch_size,
        gbs=cfg.model.reinforce.num_val_samples,
        collate_fn=collate_fn,
        load_gbs=False,
        use_random_sampler=False,
    )

    # NeMo counts optimizer steps by a loader of training batches; the real one has prompts.
    dummy_train_dataloader = torch.utils.data.DataLoader(
        dataset=train_ds, batch_size=divide(cfg.model.global_batch_size, parallel_state.get_data_parallel_world_size())
    )
    init_using_ptl(trainer, ptl_model, dummy_train_dataloader, train_ds)
    del ptl_model._train_dl
    del dummy_train_dataloader

    optimizer, scheduler = extract_optimizer_scheduler_from_ptl_model(ptl_model)
    ckpt_callback = add_custom_checkpoint_callback(trainer, ptl_model)
    logger.log_hyperparams(OmegaConf.to_container(cfg))

    teacher = None
    if needs_teacher(objective) and cfg.teacher.restore_from_path:
        teacher = load_teacher(cfg.teacher.restore_from_path, cfg.model, trainer, ptl_model)

    rm = GSRMRewardClient(cfg.remote_rm)
    timer = Timer(cfg.exp_manager.get("max_time_per_run"))
    batch_iterator_cfg = cfg.trainer.reinforce.get("batch_iterator", {})
    batch_iterator_cls = get_batch_iterator_cls(batch_iterator_cfg)

    rlkd_trainer = RLKDTrainer(
        cfg=cfg.trainer.reinforce,
        model=ptl_model,
        optimizer=optimizer,
        scheduler=scheduler,
        train_dataloader_builder=train_dataloader_builder,
        val_dataloader_builder=val_dataloader_builder,
        collate_fn=collate_fn,
        rm=rm,
        batch_iterator_cls=batch_iterator_cls,
        logger=logger,
        ckpt_callback=ckpt_callback,
        run_timer=timer,
        teacher=teacher,
    )
    if custom_trainer_state_dict is not None:
        rlkd_trainer.load_state_dict(custom_trainer_state_dict)

    rlkd_trainer.fit()

    # Its threads would keep the process alive.
    rm.communicator.close()


if __name__ == "__main__":
    main()
