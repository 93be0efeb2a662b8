"""The `data` section of a recipe: domains, how they are labelled, and how their images reach the model."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, StrictBool, model_validator

from deft_hf.data.corruptions import CORRUPTIONS, SEVERITIES, corrupted_name
from deft_hf.data.labels import LabelSpace
from deft_hf.data.layouts import LAYOUTS, split_problem
from deft_hf.data.presets import PRESETS
from deft_hf.data.streets import LOOKS, STREETS
from deft_hf.data.unreadable import POLICIES
from deft_hf.recipe.values import Integer, Number, Positive, Section, Size, found, mistake, nearest, rising

_Strength = Annotated[Number, Field(ge=0)]
_HueStrength = Annotated[Number, Field(ge=0, le=0.5)]
Jitter = Annotated[
    tuple[_Strength, _Strength, _Strength, _HueStrength],
    Field(description="[brightness, contrast, saturation, hue], four numbers, none below 0, the last at most 0.5"),
]
ScaleRange = Annotated[
    tuple[Annotated[Number, Field(gt=0)], Number],
    AfterValidator(rising),
    Field(description="[low, high], two numbers with 0 < low <= high"),
]
BlurRange = Annotated[
    tuple[_Strength, Number],
    AfterValidator(rising),
    Field(description="[low, high], two numbers with 0 <= low <= high"),
]
_Severity = Annotated[Integer, Field(ge=SEVERITIES[0], le=SEVERITIES[-1])]


class Entry(Section):
    """A domain.

    `name` stands in tables and metric keys, `weight` is how often a source is drawn beside others, `corruption` and
    `severity` make an unseen domain a corrupted copy of the images, see `deft_hf.data.corrupted`; `labels` says what
    its masks hold where that differs from `data.labels`.
    """

    name: str | None = None
    weight: Annotated[Number, Field(gt=0, description="a number above 0")] | None = None
    labels: Literal[tuple(PRESETS)] | None = None
    corruption: Literal[CORRUPTIONS] | None = None
    severity: _Severity | None = Field(None, description="a whole number from 1 to 5, or null for all five")

    @model_validator(mode="after")
    def _fill_in_name(self) -> Entry:
        default = self.default_name
        if self.corruption is not None:
            default = corrupted_name(default, self.corruption, self.severity)
        self.name = self.name or default
        return self

    def label_space(self, data: DataSection) -> LabelSpace:
        """What the masks hold, of the recipe's classes."""
        return data.label_space() if self.labels is None else PRESETS[self.labels]

    @property
    def default_name(self) -> str:
        raise NotImplementedError

    @property
    def origin(self) -> Hashable:
        """Equal for entries of a kind whose images come from the same place."""
        raise NotImplementedError

    def shares_images(self, other: Entry, root: str | None) -> bool:
        """Whether an image may be in both entries; of two splits of one place none is."""
        apart = self.split != other.split and None not in (self.split, other.split)
        return not apart and type(self) is type(other) and self._same_place(other, root)

    def _same_place(self, other: Entry, root: str | None) -> bool:
        return self.origin == other.origin

    def problem(self, root: str | None) -> str | None:
        """What is wrong with the place that the images come from, as `KEY: ...`."""
        return None


_PLACES = {"images", "masks", "image_suffix", "mask_suffix"}


class FolderEntry(Entry):
    """A domain of files: images and masks in two folders under `folder`, see `Domain.from_folder`; with a `layout` the
    official tree of a data set, see `load_layout`.
    """

    folder: str
    layout: Literal[tuple(LAYOUTS)] | None = None
    split: str | None = None
    images: str = "images"
    masks: str = "masks"
    image_suffix: str = ""
    mask_suffix: str = ""

    @property
    def default_name(self) -> str:
        return Path(self.folder).name

    def _same_place(self, other: FolderEntry, root: str | None) -> bool:
        one, two = (entry.resolved_folder(root).resolve() for entry in (self, other))
        if self.layout is not None or other.layout is not None:
            return one == two
        one, two = (one / self.images).resolve(), (two / other.images).resolve()
        return one.is_relative_to(two) or two.is_relative_to(one)

    def label_space(self, data: DataSection) -> LabelSpace:
        known = (
            self.layout is not None and self.labels is None and isinstance(data.labels, str) and data.labels in PRESETS
        )
        return PRESETS[LAYOUTS[self.layout].labels] if known else super().label_space(data)

    def resolved_folder(self, root: str | None) -> Path:
        """The folder itself; a relative one starts at `root` (`data.root`), or at the working folder if None."""
        return Path(root or "").expanduser() / Path(self.folder).expanduser()

    def problem(self, root: str | None) -> str | None:
        folder = self.resolved_folder(root)
        if self.layout is not None and (problem := split_problem(self.layout, self.split)):
            return problem
        if self.layout is not None and (own := sorted(self.model_fields_set & _PLACES)):
            return f"{own[0]}: found beside layout, which knows it; take one of them out"
        return None if folder.is_dir() else f"folder: found no folder {folder}; mend it, or override data.root=PATH"


class HubEntry(Entry):
    """A domain of a data set on the Hub or in a folder of `datasets`' own kind, see `Domain.from_hub`."""

    hub: str
    split: str
    image_column: str = "image"
    mask_column: str = "mask"
    config: str | None = None
    revision: str | None = None

    @property
    def default_name(self) -> str:
        return Path(self.hub).name

    @property
    def origin(self) -> Hashable:
        hub = Path(self.hub)
        return hub.resolve() if hub.exists() else self.hub, self.config, self.image_column

    def problem(self, root: str | None) -> str | None:
        if Path(self.hub).exists() or is_hub_name(self.hub):
            return None
        return f"hub: found {self.hub!r}, expected a Hub name (owner/name) or a folder that exists"


class StreetsEntry(Entry):
    """A domain of the drawn street world, see `Domain.from_streets`."""

    streets: Literal[LOOKS]
    count: Positive
    seed: Annotated[Integer, Field(ge=0, description="a whole number, 0 or more")] = 0
    size: Size = (192, 256)
    split: ClassVar[None] = None

    @property
    def default_name(self) -> str:
        return self.streets

    @property
    def origin(self) -> Hashable:
        return self.streets, self.seed


_KINDS: dict[str, type[Entry]] = {"folder": FolderEntry, "hub": HubEntry, "streets": StreetsEntry}


def _of_one_kind(entry: Any) -> Entry:
    if not isinstance(entry, dict):
        raise mistake(f"{found(entry)}, expected a mapping with one of the keys {', '.join(_KINDS)}")
    kinds = [kind for kind in _KINDS if kind in entry]
    if len(kinds) != 1:
        near = "" if kinds else next(filter(None, (nearest(key, _KINDS) for key in entry)), "")
        raise mistake(
            f"found {' and '.join(kinds) or 'none'} of the keys {', '.join(_KINDS)}, expected exactly one{near}"
        )
    return _KINDS[kinds[0]].model_validate(entry)


Entries = list[Annotated[SerializeAsAny[Entry], BeforeValidator(_of_one_kind)]]


class DataSection(Section):
    """Where images and masks come from and what is done to them. Sizes are (height, width) in pixels."""

    root: str | None = None
    labels: Literal[("streets", *PRESETS)] | dict[str, Any] = Field(
        description=f"one of streets, {', '.join(PRESETS)}, or a mapping with names and, where needed, palette, ids "
        "and colors"
    )
    source: Entries = Field(min_length=1, description="a list of at least one domain to train on")
    validation: Entries = Field([], description="a list of source domains to choose a checkpoint on")
    unseen: Entries = Field([], description="a list of domains that are only ever evaluated on")
    image_size: Size | None = None
    crop_size: Size | None = None
    scale: ScaleRange = (0.5, 2.0)
    flip: Annotated[Number, Field(ge=0, le=1, description="a probability, from 0 to 1")] = 0.5
    color_jitter: Jitter | None = (0.4, 0.4, 0.4, 0.1)
    blur: BlurRange | None = (0.15, 1.3)
    max_class_share: Annotated[Number, Field(gt=0, le=1, description="a share, above 0 and at most 1")] = 0.75
    recolor: StrictBool = False
    window: Size | None = None
    stride: Size | None = None
    images_while_training: Positive | None = None
    check: StrictBool = True
    unreadable: Literal[POLICIES] = "stop"

    @model_validator(mode="after")
    def _fill_in_crop_size(self) -> DataSection:
        self.crop_size = self.crop_size or self.image_size
        return self

    def label_space(self) -> LabelSpace:
        """The classes.

        Raises:
            UserError: `labels` contradicts itself.
        """
        if isinstance(self.labels, str):
            return STREETS if self.labels == "streets" else PRESETS[self.labels]
        return LabelSpace.from_mapping(self.labels)


def is_hub_name(text: str) -> bool:
    """Whether the text could be the name of a repository on the Hub."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True
