"""The `model`, `method` and `publish` sections of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic.fields import FieldInfo

from deft_hf.methods import METHODS, MethodSettings, methods
from deft_hf.models.embedded import resolved
from deft_hf.models.heads import HEADS
from deft_hf.recipe.section import Section, fields_of
from deft_hf.recipe.values import Expected, OneOf

_MethodName = Annotated[str, OneOf(METHODS)]


class ModelSection(Section):
    """The pretrained model: a `checkpoint`, or a `backbone` under a `head` that is still to be trained."""

    checkpoint: Annotated[
        str | None, Expected("text: a Hub name, a folder, or embedded (the tiny SegFormer of this package)")
    ] = Field(
        default=None,
        description="Hub name or folder of a segmentation model, or of an encoder that such a model has; `embedded` "
        "is the tiny SegFormer of the package. This or `backbone` is required.",
    )
    backbone: Annotated[str | None, Expected("text: a Hub name or a folder")] = Field(
        default=None, description="Hub name or folder of a backbone that gets a new `head`."
    )
    head: Annotated[str, OneOf(HEADS)] | None = Field(
        default=None, description="What to put on the backbone, freshly initialized; `dpt` is for ViTs."
    )
    head_config: Annotated[dict[str, Any], Expected("a mapping of fields of the head's config to other values")] = (
        Field(default={}, description="Fields of the head's config to change, such as `{hidden_size: 256}`.")
    )
    encoder: str | None = Field(
        default=None, description="Dotted path of the encoder, for architectures that deft_hf does not know."
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit on the Hub. Default: main.")
    trust_remote_code: bool = Field(
        default=False,
        description="Run Python code of the model's repository, of the `revision` that is named. It is never run "
        "otherwise.",
    )
    config: Annotated[dict[str, Any], Expected("a mapping of fields of the model's config to other values")] = Field(
        default={},
        description="Fields of the model's config to change, such as `{output_stride: 8}`; of the backbone's, such as "
        "`{out_indices: [3, 6, 9, 12]}`.",
    )
    channels_last: bool = Field(
        default=False,
        description="Lay weights out channels last, which convolutions may run faster with; the export is the same.",
    )

    @property
    def key(self) -> Literal["checkpoint", "backbone"]:
        """The one of the two keys that says where the weights come from."""
        return "checkpoint" if self.backbone is None else "backbone"

    @property
    def pretrained(self) -> str:
        """Where the weights come from, as the recipe has it."""
        name = self.checkpoint if self.backbone is None else self.backbone
        assert name is not None  # a recipe with neither is refused
        return name

    def resolved_checkpoint(self) -> str:
        """What `from_pretrained` takes: a Hub name or a folder."""
        return resolved(self.pretrained)


class MethodSection(Section, MethodSettings, extra="allow"):
    """The method, its settings, and the methods to train beside it.

    The settings are those that the methods and ingredients of `deft_hf.methods` declare. A method that another package
    registers may have more; they stand among these keys too.
    """

    name: _MethodName = Field(default="deft", description="The method.")
    baselines: list[_MethodName] = Field(
        default=[], description="Further methods that are trained on the same recipe and reported beside it."
    )

    advice: ClassVar[dict[str, str]] = {"method": "did you mean name?"}

    @classmethod
    def keys(cls) -> dict[str, FieldInfo]:
        own = {name: cls.model_fields[name] for name in ("name", "baselines")}
        return own | _SETTINGS | _registered_settings()

    @classmethod
    def advice_on(cls, key: str) -> str | None:
        from transformers import TrainingArguments

        known = TrainingArguments.__dataclass_fields__
        return f"it belongs to training: training.{key}" if key in known else super().advice_on(key)

    @model_validator(mode="after")
    def _leave_defaults_out(self) -> MethodSection:
        # As `exclude_defaults` does for the declared ones: a setting at its default makes no other run.
        registered, given = _registered_settings(), self.model_extra or {}
        for name in [name for name, value in given.items() if value == registered[name].default]:
            del given[name]
        return self

    def settings_of(self, method: str) -> dict[str, Any]:
        """The settings that a method from another package has for itself, as far as the recipe sets them.

        Args:
            method (`str`):
                The name of a method.
        """
        own = fields_of(methods()[method].Settings)
        return {name: value for name, value in (self.model_extra or {}).items() if name in own}


_SETTINGS = fields_of(MethodSettings)


def _registered_settings() -> dict[str, FieldInfo]:
    """What methods have beyond the settings of the methods of this package."""
    found = {name: field for method in methods().values() for name, field in fields_of(method.Settings).items()}
    return {name: field for name, field in found.items() if name not in _SETTINGS}


class PublishSection(Section):
    """What happens to the exported model."""

    push_to_hub: bool = Field(default=False, description="Push the finished run to the Hub.")
    repo_id: str | None = Field(
        default=None,
        description="Repository to push to, `user/name` or `organization/name`; created where there is none.",
    )
    private: bool = Field(default=True, description="A new repository is private, and one that is public is refused.")
    revision: str | None = Field(
        default=None, description="Branch to push to, created where there is none. Default: main."
    )
    every_save: bool = Field(
        default=False, description="Push the model of each checkpoint too, while training continues."
    )
    best_and_worst: bool = Field(
        default=False,
        description="Draw the best, the median and the worst image of each domain, for the card and the page.",
    )
    license: str | None = Field(default=None, description="License of the model, for the card.")
    base_license: str | None = Field(
        default=None,
        description="Terms of the base model in words, for the card. Default: as known; NVIDIA's for SegFormer.",
    )
    data_licenses: Annotated[
        dict[str, str], Expected("a mapping of names of domains to the terms of their images")
    ] = Field(
        default={},
        description="Terms of the images by domain, for the card. Default: as known of `layout` and `streets`.",
    )
