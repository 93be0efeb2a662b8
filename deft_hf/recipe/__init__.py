"""Recipes: everything that a run is made of, in one strict YAML file.

    model: {checkpoint: embedded}
    method: {name: deft, baselines: [joint], decoder_warmup_steps: 100}
    data:
      root: data
      labels: streets
      source: [{folder: town, split: train}]
      validation: [{folder: town, split: val}]
      unseen: [{folder: coast}, {streets: night, count: 50}]
      crop_size: [160, 208]
    training: {output_dir: outputs/town, max_steps: 800, learning_rate: 6e-5}

A recipe only declares: neither data nor model is opened here. What can be known to be wrong before they are is an
error at once, one line for each mistake.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, PrivateAttr, StrictBool, StrictStr, ValidationError
from transformers import TrainingArguments

from deft_hf.methods import METHODS
from deft_hf.models.embedded import resolved
from deft_hf.recipe.checks import contradictions
from deft_hf.recipe.data import DataSection
from deft_hf.recipe.file import read_recipe
from deft_hf.recipe.values import Section, section_of
from deft_hf.trainer.arguments import DeFTTrainingArguments
from deft_hf.utils.errors import UserError


class ModelSection(Section):
    """The pretrained model: a `checkpoint`, or a `backbone` under a `head` that is still to be trained."""

    checkpoint: str | None = Field(
        None, description="text: a Hub name, a folder, or embedded (the tiny SegFormer of this package)"
    )
    backbone: str | None = Field(None, description="text: a Hub name or a folder")
    head: Literal["upernet", "dpt", "mask2former"] | None = None
    head_config: dict[str, Any] = Field({}, description="a mapping of fields of the head's config to other values")
    encoder: str | None = None
    revision: str | None = None
    config: dict[str, Any] = Field({}, description="a mapping of fields of the model's config to other values")
    channels_last: StrictBool = False

    @property
    def key(self) -> Literal["checkpoint", "backbone"]:
        """The one of the two keys that says where the weights come from."""
        return "checkpoint" if self.backbone is None else "backbone"

    @property
    def pretrained(self) -> str:
        """Where the weights come from, as the recipe has it."""
        return getattr(self, self.key)

    def resolved_checkpoint(self) -> str:
        """What `from_pretrained` takes: a Hub name or a folder."""
        return resolved(self.pretrained)


class PublishSection(Section):
    """What happens to the exported model."""

    push_to_hub: StrictBool = False
    repo_id: str | None = None
    private: StrictBool = True
    revision: str | None = None
    every_save: StrictBool = False
    license: str | None = None
    base_license: str | None = None
    data_licenses: dict[str, StrictStr] = Field(
        {}, description="a mapping of names of domains to the terms of their images"
    )


_TRAINING_FIELDS = {field.name for field in dataclasses.fields(TrainingArguments)}
_METHOD_FIELDS = {field.name for field in dataclasses.fields(DeFTTrainingArguments)} - _TRAINING_FIELDS
# What the entry does by itself: it goes on from the last checkpoint, and publishes the finished run.
_TAKEN_OVER = {"resume_from_checkpoint", "push_to_hub"} | {
    name for name in _TRAINING_FIELDS if name.startswith("hub_")
}
_Method = Literal[tuple(METHODS)]

MethodSection = section_of(
    "MethodSection",
    DeFTTrainingArguments,
    leave_out=_TRAINING_FIELDS | {"method"},
    name=(_Method, DeFTTrainingArguments.method),
    baselines=(list[_Method], []),
)
MethodSection.advice = {key: f"it belongs to training: training.{key}" for key in _TRAINING_FIELDS} | {
    "method": "did you mean name?"
}
TrainingSection = section_of(
    "TrainingSection",
    DeFTTrainingArguments,
    leave_out=_METHOD_FIELDS | _TAKEN_OVER,
    output_dir=(
        Annotated[str, AfterValidator(os.path.expanduser)],
        Field(description="text: the folder that the run writes to"),
    ),
)
TrainingSection.advice = {
    **{key: f"it belongs to method: method.{key}" for key in _METHOD_FIELDS},
    "method": "it belongs to method: method.name",
    **{key: "the Hub stands under publish: publish.push_to_hub, publish.repo_id" for key in _TAKEN_OVER},
    "resume_from_checkpoint": "the same command goes on from the last checkpoint by itself",
    # Gone from transformers 5, but still in many a recipe.
    "adafactor": "transformers 5 writes optim: adafactor",
    "evaluation_strategy": "transformers 5 calls it eval_strategy",
    "group_by_length": "transformers 5 writes train_sampling_strategy: group_by_length",
    "logging_dir": "transformers 5 took it away; set the environment variable TENSORBOARD_LOGGING_DIR",
    "no_cuda": "transformers 5 calls it use_cpu",
    "overwrite_output_dir": "transformers 5 took it away; choose another output_dir",
    "per_gpu_eval_batch_size": "transformers 5 calls it per_device_eval_batch_size",
    "per_gpu_train_batch_size": "transformers 5 calls it per_device_train_batch_size",
    "save_safetensors": "transformers 5 took it away; weights are always saved as safetensors",
    "use_mps_device": "transformers 5 took it away; the device is found by itself",
    "warmup_ratio": "transformers 5 took it away; a warmup_steps below 1 is a share of all steps",
}


class Recipe(Section):
    """Everything that a run is made of. Build it with [`Recipe.load`].

    Args:
        model (`ModelSection`): The pretrained model.
        method (`MethodSection`): `name`, `baselines` (methods trained on the same recipe and reported beside it), and
            the fields that `DeFTTrainingArguments` has beyond those of `TrainingArguments`.
        data (`DataSection`): Domains, labels, sizes and augmentation.
        training (`TrainingSection`): Any `TrainingArguments` field.
        publish (`PublishSection`): Where the exported model goes.
    """

    model: ModelSection
    method: MethodSection = MethodSection()
    data: DataSection
    training: TrainingSection
    publish: PublishSection = PublishSection()

    _path: str = PrivateAttr("recipe")

    @classmethod
    def load(cls, path: str | os.PathLike, overrides: Iterable[str] = ()) -> Recipe:
        """Reads and checks a recipe.

        Args:
            path: The YAML file.
            overrides: `key.sub=value` each, the value in YAML. A number stands for an item of a list that the file has
                (`data.unseen.0.folder=coast`).

        Raises:
            UserError: Everything that is wrong, one line each: file, key, what was found, what was expected.
        """
        try:
            recipe = cls.model_validate(read_recipe(path, overrides))
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()]
        else:
            problems = list(contradictions(recipe))
        if problems:
            raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
        recipe._path = str(path)
        return recipe

    @property
    def path(self) -> str:
        """The file that it was read from."""
        return self._path

    def to_yaml(self) -> str:
        """The recipe with overrides and defaults filled in, to be loaded again; of `training` only what was set."""
        sections = self.model_dump(exclude={"training"})
        sections["training"] = self.training.model_dump(exclude_unset=True)
        in_order = {name: sections[name] for name in type(self).model_fields}
        return yaml.safe_dump(in_order, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)

    def training_arguments(self, **changes: Any) -> DeFTTrainingArguments:
        """The Trainer's arguments.

        Args:
            changes: Fields that shall differ from the recipe: `method="joint"` for a baseline, `output_dir`, `seed`.

        Raises:
            UserError: Values that `DeFTTrainingArguments` refuses.
        """
        method = self.method.model_dump(exclude={"name", "baselines"})
        values = self.training.model_dump(exclude_unset=True) | method | {"method": self.method.name} | changes
        try:
            return DeFTTrainingArguments(**values)
        except ValueError as error:
            raise UserError(f"{self._path}: method and training: {error}") from error


Recipe.advice = {
    key: f"it belongs to {section}: {section}.{key}"
    for section, field in reversed(Recipe.model_fields.items())
    for key in field.annotation.model_fields
}
