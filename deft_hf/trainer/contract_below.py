"""The part of [`deft_hf.trainer.contract`] that methods, models and scoring rely on."""

from __future__ import annotations

from deft_hf.utils.upstream import Fact

_TRAINER = "transformers.trainer:Trainer"
_NO_NAME = "loud: no such name"
_CRITERIA = {
    "mask2former.modeling_mask2former": "Mask2Former",
    "maskformer.modeling_maskformer": "MaskFormer",
    "oneformer.modeling_oneformer": "OneFormer",
    "eomt.modeling_eomt": "Eomt",
    "eomt_dinov3.modeling_eomt_dinov3": "EomtDinov3",
}

BELOW: dict[str, tuple[Fact, ...]] = {
    "methods.core.batchnorm": (Fact("torch.nn.modules.batchnorm:_BatchNorm", _NO_NAME),),
    "methods.core.cost": (
        Fact(
            "torch.utils.flop_counter:FlopCounterMode.__init__",
            "loud: Mask2Former cannot be counted",
            says=("self.mod_tracker = ",),
        ),
        Fact(
            "torch.utils.flop_counter:conv_backward_flop",
            "silent: arguments of another meaning are counted",
            takes="grad_out_shape x_shape w_shape _bias _stride _padding _dilation transposed _output_padding _groups "
            "output_mask out_shape kwargs",
        ),
    ),
    "methods.core.ema": (Fact("torch:_foreach_lerp_", _NO_NAME),),
    "methods.core.pathways": (
        Fact(
            "torch:Tensor.register_hook",
            "silent: a hook on a parameter changes its gradient twice",
            says=("self._backward_hooks = OrderedDict()", "self._backward_hooks[handle.id] = hook"),
        ),
        Fact(
            f"{_TRAINER}.__init__",
            "silent: Trainer takes the loss for one that is not normalised over the step",
            says=("unwrapped_model.accepts_loss_kwargs",),
        ),
        Fact(
            "accelerate.utils.fsdp_utils:fsdp2_prepare_auto_wrap_policy",
            "silent: FSDP2 gathers the whole model at once",
            says=('getattr(model, "_no_split_modules", None)',),
        ),
    ),
    "methods.core.shards": (
        Fact(
            "deepspeed.runtime.zero.partition_parameters:Init._convert_to_deepspeed_param",
            "silent: parameters that are sharded are taken for whole",
            says=("param.ds_shape = ", "param.ds_numel = ", "param.ds_tensor = ", "param.ds_process_group = "),
        ),
        Fact(
            "deepspeed.runtime.zero.partition_parameters:Init",
            "loud: slices of other lengths",
            says=("param.ds_tensor.ds_numel = partition_size",),
        ),
    ),
    "methods.lora": (
        Fact(
            "torch.nn.modules.conv:_ConvNd.__init__",
            "silent: adapters of convolutions pad otherwise",
            says=("self._reversed_padding_repeated_twice = ",),
        ),
        Fact(
            "peft:inject_adapter_in_model",
            "loud: adapters cannot be put in",
            takes="peft_config model adapter_name low_cpu_mem_usage state_dict",
        ),
        Fact(
            "peft.tuners.lora.layer:_ConvNd.update_layer",
            "silent: adapters of convolutions have another geometry",
            says=("self.lora_A[adapter_name] = conv_layer(", "self.lora_B[adapter_name] = conv_layer("),
        ),
        Fact("peft.tuners.lora:Conv2d", _NO_NAME),
        Fact("peft.tuners.lora:LoraLayer.merge", _NO_NAME, takes="self safe_merge adapter_names"),
        Fact("peft.tuners.lora:LoraLayer.get_base_layer", _NO_NAME, takes="self"),
        Fact(
            "transformers.modeling_utils:PreTrainedModel.save_pretrained",
            "silent: an export is of adapters alone",
            says=('getattr(self, "_hf_peft_config_loaded", False)',),
        ),
        Fact(
            "peft.tuners.tuners_utils:BaseTuner.__init__",
            "silent: an export keeps a note of adapters that it does not have",
            says=("self.model.peft_config",),
        ),
    ),
    "trainer.limits": (Fact("torch._inductor:list_mode_options", _NO_NAME),),
    "models.timm_backbones": (
        Fact(
            "transformers.models.timm_backbone.modeling_timm_backbone:TimmBackbone.__init__",
            "loud: a timm backbone does not open",
            says=("self._backbone = ",),
        ),
    ),
    "models.modeling_deeplabv3plus": (
        Fact(
            "transformers.modeling_utils:PreTrainedModel._init_weights",
            "silent: new tensors of DeepLabV3+ are drawn otherwise",
            takes="self module",
        ),
    ),
    "models.backbones": (Fact("transformers.models.auto.modeling_auto:MODEL_FOR_BACKBONE_MAPPING_NAMES", _NO_NAME),),
    "models.masks": (
        *(
            Fact(f"transformers.models.{module}:{name}Loss.{method}", "loud: the first step fails", takes=takes)
            for module, name in _CRITERIA.items()
            for method, takes in (
                ("loss_labels", "self class_queries_logits class_labels indices"),
                ("loss_masks", "self masks_queries_logits mask_labels indices num_masks"),
            )
        ),
        *(
            Fact(f"transformers.models.{module}:{name}Loss.{method}", "silent: terms have other weights", says=(text,))
            for module, name in _CRITERIA.items()
            for method, text in (
                ("__init__", "self.matcher = "),
                ("__init__", "empty_weight[-1] = self.eos_coef"),
                ("loss_labels", "weight=self.empty_weight"),
                ("loss_labels", "loss_cross_entropy"),
            )
        ),
        *(
            Fact(
                f"transformers.models.{module}:{name}For{task}Segmentation.get_loss_dict",
                "silent: terms of the loss lose their weights",
                says=("self.criterion(", "self.weight_dict.items():", "if key in loss_key: loss *= weight"),
            )
            for module, name in _CRITERIA.items()
            for task in ("Instance" if name == "MaskFormer" else "Universal",)
        ),
    ),
    "models.new_tensors": (
        Fact(
            "transformers.utils.loading_report:LoadStateDictInfo.to_dict",
            "loud: KeyError when a model is opened",
            says=('"missing_keys": self.missing_keys', '"mismatched_keys": self.mismatched_keys'),
        ),
    ),
    "models.views": (
        Fact(
            "torch.nn.modules.module:Module.named_children",
            "silent: a view runs the module that it should replace",
            says=("self._modules.items()",),
        ),
    ),
    "scoring.metric": (
        Fact("evaluate.module:EvaluationModule._info", "loud: the metric cannot be made", takes="self"),
    ),
}
