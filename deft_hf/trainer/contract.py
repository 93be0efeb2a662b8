"""Every private or unstable name of other packages that deft_hf relies on, and a check of what is installed.

A release may change these without notice. `violations` says what differs from what the code was written against.
"""

from __future__ import annotations

from deft_hf.trainer.contract_below import BELOW
from deft_hf.utils.upstream import Fact, problem

_TRAINER = "transformers.trainer:Trainer"
_ZERO_3 = "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3"
_LOOP = "loud: the override is called with other arguments"
_UNSEEN = "silent: the override is never called"
_WHEN_SAVING = "loud: the first checkpoint fails"
_WHEN_RESUMING = "loud: a run cannot be resumed"
_NO_NAME = "loud: no such name"
_NO_ADVICE = "loud: a traceback in place of advice"
_DRAWS = "silent: with persistent workers a resumed run goes on with other random numbers"
_SHARDS = "loud: the state of a sharded optimizer is not found"

FACTS: dict[str, tuple[Fact, ...]] = {
    "trainer.trainer": (
        Fact(
            f"{_TRAINER}._inner_training_loop",
            _UNSEEN,
            says=(
                "self.get_train_dataloader()",
                "self.set_initial_training_values(args, train_dataloader)",
                "self._init_training_state(",
                "self._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)",
                "self._tr_loss = torch.tensor(0.0, device=args.device)",
                "self._total_loss_scalar = 0.0",
                "self.callback_handler.on_train_begin(",
                "self._run_epoch(",
                "epoch=epoch,",
                "if self.control.should_training_stop:",
                "self._finalize_training(",
            ),
        ),
        Fact(
            f"{_TRAINER}.set_initial_training_values",
            "loud: too many or too few values to unpack",
            takes="self args dataloader",
            returns=7,
            says=(
                "return ( num_train_epochs, num_update_steps_per_epoch, num_examples, num_train_samples, "
                "total_train_batch_size, steps_in_epoch, max_steps, )",
            ),
        ),
        Fact(
            f"{_TRAINER}._init_training_state",
            _LOOP,
            takes="self max_steps num_update_steps_per_epoch num_train_epochs resume_from_checkpoint trial",
            returns=2,
        ),
        Fact(
            f"{_TRAINER}._prepare_for_training",
            "silent: groups are noted, or a checkpoint is loaded, after the parameters were sharded",
            takes="self max_steps train_dataloader resume_from_checkpoint",
            returns=2,
            says=(
                "if self._created_lr_scheduler: self.lr_scheduler = None",
                "self.create_optimizer()",
                "self.accelerator.prepare(self.model, self.optimizer)",
                "self.create_scheduler(num_training_steps=max_steps)",
                "self._load_optimizer_and_scheduler(resume_from_checkpoint)",
                "self._load_scaler(resume_from_checkpoint)",
            ),
        ),
        Fact(
            f"{_TRAINER}._get_dataloader",
            "silent: evaluation counts images twice, or training has no masks",
            takes="self dataset description batch_size sampler_fn is_training dataloader_key",
            says=("self.data_collator",),
        ),
        Fact(
            f"{_TRAINER}.get_batch_samples",
            "silent: the loss is normalised by a batch, not by the step",
            says=("self._get_num_items_in_batch(batch_samples, device)",),
        ),
        Fact(f"{_TRAINER}._get_num_items_in_batch", _LOOP, takes="self batch_samples device"),
        Fact(
            f"{_TRAINER}.training_step",
            "silent: the loss is divided once more by the accumulation steps",
            says=(
                "self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)",
                "loss_is_scaled_for_ga = self.loss_is_scaled_for_ga",
                "if not loss_is_scaled_for_ga:",
            ),
        ),
        Fact(
            f"{_TRAINER}._maybe_log_save_evaluate",
            "loud: the override is called with other arguments; silent: SIGTERM leaves without a checkpoint",
            takes="self tr_loss grad_norm model trial epoch ignore_keys_for_eval start_time learning_rate",
            says=("self.log(", "self._save_checkpoint(model, trial)", "self.callback_handler.on_save("),
        ),
        Fact(
            f"{_TRAINER}._save_checkpoint",
            "silent: a checkpoint lacks what Trainer newly keeps",
            takes="self model trial",
            says=(
                "self.store_flos()",
                "self._get_output_dir(trial=trial)",
                "self.save_model(output_dir, _internal_call=True)",
                "self.state.best_model_checkpoint = best_checkpoint_dir",
                "self._save_optimizer_and_scheduler(output_dir) self._save_scaler(output_dir)",
                "self._save_rng_state(output_dir)",
                "self.state.stateful_callbacks[cb_name].append(cb_state)",
                "self.state.save_to_json(",
                "self._push_from_checkpoint(output_dir)",
                "rotate_checkpoints(",
            ),
        ),
        Fact(f"{_TRAINER}.save_model", _WHEN_SAVING, takes="self output_dir _internal_call"),
        Fact(f"{_TRAINER}._save", _UNSEEN, takes="self output_dir state_dict"),
        Fact(f"{_TRAINER}._get_output_dir", _WHEN_SAVING, takes="self trial"),
        Fact(f"{_TRAINER}._save_optimizer_and_scheduler", _WHEN_SAVING, takes="self output_dir"),
        Fact(f"{_TRAINER}._save_scaler", _WHEN_SAVING, takes="self output_dir"),
        Fact(f"{_TRAINER}._save_rng_state", _WHEN_SAVING, takes="self output_dir"),
        Fact(f"{_TRAINER}._load_optimizer_and_scheduler", _WHEN_RESUMING, takes="self checkpoint"),
        Fact(f"{_TRAINER}._load_scaler", _WHEN_RESUMING, takes="self checkpoint"),
        Fact(f"{_TRAINER}._load_from_checkpoint", _WHEN_RESUMING, takes="self resume_from_checkpoint model"),
        Fact(f"{_TRAINER}._load_best_model", _UNSEEN, takes="self"),
        Fact(f"{_TRAINER}._determine_best_metric", _UNSEEN, takes="self metrics trial"),
        Fact(
            f"{_TRAINER}._finalize_training",
            f"{_UNSEEN}; silent: train_loss is of other steps than it says",
            says=(
                "self._total_loss_scalar += self._tr_loss.item()",
                "num_steps_trained = self.state.global_step - self._initial_global_step",
                "train_loss = self._total_loss_scalar / max(num_steps_trained, 0.001)",
                'metrics["train_loss"] = train_loss',
                "self.log(metrics)",
                "self._load_best_model()",
                "self._finish_current_push()",
                "return TrainOutput(self.state.global_step, train_loss, metrics)",
            ),
        ),
        Fact(f"{_TRAINER}.train", "silent: model_init is never called", says=("self.call_model_init(trial)",)),
        Fact(
            "torch.amp.grad_scaler:GradScaler.step",
            "silent: the average moves at steps that overflowed",
            says=('getattr(optimizer, "_step_supports_amp_scaling", False)',),
        ),
    ),
    "trainer.adapters": (
        Fact(
            "peft.utils.other:ModulesToSaveWrapper.update",
            "silent: another copy of the decoder is trained than is used",
            says=("self.modules_to_save[adapter_name] = copy.deepcopy(self.original_module)",),
        ),
    ),
    "trainer.callbacks": (
        Fact(
            f"{_TRAINER}._run_epoch",
            "silent: the average follows, or stages change, at the wrong place of a step",
            takes="self model epoch train_dataloader steps_in_epoch num_update_steps_per_epoch trial "
            "ignore_keys_for_eval start_time resume_from_checkpoint epochs_trained steps_trained_in_current_epoch",
            says=(
                "self.current_gradient_accumulation_steps = len(batch_samples)",
                "self.callback_handler.on_step_begin(",
                "self.training_step(",
                "self.callback_handler.on_pre_optimizer_step(",
                "self.optimizer.step()",
                "self.callback_handler.on_optimizer_step(",
                "if not self.accelerator.optimizer_step_was_skipped:",
                "self.lr_scheduler.step()",
                "model.zero_grad()",
                "self.state.global_step += 1",
                "self.callback_handler.on_step_end(",
                "self._maybe_log_save_evaluate(",
                "self.callback_handler.on_epoch_end(",
                "self._maybe_log_save_evaluate(",
            ),
        ),
        Fact(
            "transformers.trainer_callback:CallbackHandler.call_event",
            "loud: KeyError in a callback",
            says=("optimizer=self.optimizer", "lr_scheduler=self.lr_scheduler"),
        ),
        Fact("accelerate.accelerator:Accelerator.optimizer_step_was_skipped", _NO_NAME),
        Fact(
            "torch.optim.lr_scheduler:LRScheduler.step",
            "loud: a warning at a skipped first step",
            says=('"Detected call of `lr_scheduler.step()`',),
        ),
    ),
    "trainer.checkpoints": (
        Fact("transformers.trainer:OPTIMIZER_NAME", _WHEN_SAVING, value="optimizer.pt"),
        Fact("transformers.trainer:SCHEDULER_NAME", _WHEN_SAVING, value="scheduler.pt"),
    ),
    "trainer.checks": (
        Fact(
            "transformers.training_args:TrainingArguments.n_gpu",
            "silent: DataParallel splits a batch, and its loss, over the GPUs",
            says=("self._n_gpu",),
        ),
    ),
    "trainer.hub": (
        Fact(f"{_TRAINER}._push_from_checkpoint", _UNSEEN, takes="self checkpoint_folder"),
        Fact(f"{_TRAINER}._finish_current_push", _UNSEEN, takes="self"),
        Fact(
            "transformers.modelcard:TrainingSummary.from_trainer",
            "silent: a card by Trainer is never renewed",
            says=('"generated_from_trainer"',),
        ),
    ),
    "trainer.launchers": (
        Fact(
            "transformers.integrations.deepspeed:unset_hf_deepspeed_config",
            "loud: no import; silent: models that are loaded later are sharded",
            takes="",
            says=("_hf_deepspeed_config_weak_ref = None",),
        ),
        Fact("accelerate.accelerator:Accelerator.is_fsdp2", _NO_NAME),
        Fact("accelerate.state:AcceleratorState.deepspeed_plugin", _NO_NAME),
        Fact(
            "accelerate.state:AcceleratorState.__init__",
            "silent: FSDP2's checkpoints are Trainer's own, for as many ranks only",
            says=("self.fsdp_plugin = fsdp_plugin",),
        ),
        Fact(
            "accelerate.utils.dataclasses:DeepSpeedPlugin.__post_init__",
            _NO_NAME,
            says=("self.zero_stage = ", "self.deepspeed_config = "),
        ),
    ),
    "trainer.loaders": (
        Fact(
            "accelerate.accelerator:Accelerator.dispatch_batches",
            "silent: one rank makes the batches of a stream, and lists of masks are cut",
            says=("self.dataloader_config.dispatch_batches",),
        ),
        Fact(
            "accelerate.data_loader:DataLoaderAdapter.__init__",
            "silent: SIGTERM kills the workers of the data loader",
            says=("self.base_dataloader = DataLoader(",),
        ),
        Fact("torch.utils.data.dataloader:DataLoader.__iter__", _DRAWS, says=("self._iterator._reset(self)",)),
        Fact(
            "torch.utils.data.dataloader:_BaseDataLoaderIter.__init__",
            _DRAWS,
            says=(".random_(generator=loader.generator)",),
        ),
    ),
    "trainer.log": (Fact("torch:_foreach_norm", _NO_NAME),),
    "trainer.optimizer_state": (
        Fact("accelerate.optimizer:AcceleratedOptimizer.__init__", _SHARDS, says=("self.optimizer = optimizer",)),
        Fact(
            f"{_ZERO_3}.__init__",
            _SHARDS,
            says=(
                "self.optimizer = init_optimizer",
                "self.fp32_partitioned_groups_flat = []",
                "self.grad_position = {}",
            ),
        ),
        Fact(
            f"{_ZERO_3}.set_grad_positions",
            "silent: moments of other parameters are saved",
            says=("self.grad_position[param_id] = [int(i), int(current_offset), int(num_elements)]",),
        ),
        Fact(f"{_ZERO_3}.get_param_id", _SHARDS, takes="self param"),
        Fact(
            "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer.__init__",
            _SHARDS,
            says=("self.optimizer = init_optimizer", "self.single_partition_of_fp32_groups.append("),
        ),
        Fact("deepspeed.utils.mixed_precision_linkage:link_hp_params", _SHARDS, says=("lp_param._hp_mapping = ",)),
        Fact(
            "deepspeed.utils.mixed_precision_linkage:_init_lp_to_hp_mapping",
            _SHARDS,
            says=("lp_param._hp_mapping = None", "lp_param._dp_group = dp_group"),
        ),
        Fact("deepspeed.utils.tensor_fragment:fragment_address", _SHARDS, says=("numel: int", "start: int")),
        Fact(
            "deepspeed.utils.tensor_fragment:tensor_fragment",
            _SHARDS,
            says=("lp_fragment_address: ", "hp_fragment_address: "),
        ),
    ),
    "trainer.search": (
        Fact(
            "transformers.integrations.integration_utils:run_hp_search_optuna",
            "loud: no trial runs",
            says=("trainer.train(resume_from_checkpoint=checkpoint, trial=trial)", "return trainer.objective"),
        ),
    ),
    "env": (Fact("accelerate.commands.config.config_args:default_config_file", _NO_NAME),),
    **BELOW,
    "utils.errors": (
        Fact(
            "torch.nn.functional:_verify_batch_size",
            _NO_ADVICE,
            says=('raise ValueError( f"Expected more than 1 value per channel',),
        ),
        Fact(
            "torch.utils.data.dataloader:_MultiProcessingDataLoaderIter._try_get_data",
            _NO_ADVICE,
            says=('f"DataLoader worker (pid',),
        ),
        Fact(
            "torch._utils:ExceptionWrapper.reraise",
            "loud: a worker's traceback as the text of a user's error",
            says=("self.exc_type(msg)",),
        ),
    ),
    "utils.completion": (
        Fact(
            "argparse:_ActionsContainer.__init__",
            "loud: `deft-hf completion` ends in an AttributeError",
            says=("self._actions",),
        ),
    ),
    "utils.files": (Fact("transformers.trainer:TRAINER_STATE_NAME", _WHEN_RESUMING, value="trainer_state.json"),),
}
"""By the module of deft_hf that relies on them."""


def violations() -> list[str]:
    """What is installed and differs from `FACTS`, one line each: what, how, and what breaks of it."""
    return [
        f"{fact.place} {change}; deft_hf.{module} relies on it ({fact.breaks})"
        for module, facts in FACTS.items()
        for fact in facts
        if (change := problem(fact))
    ]
