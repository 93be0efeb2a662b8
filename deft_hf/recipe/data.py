"""The `data` section of a recipe: domains, how they are labelled, and how their images reach the model."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, model_validator

from deft_hf.data.corruptions import CORRUPTIONS, SEVERITIES, corrupted_name
from deft_hf.data.files import split_ids
from deft_hf.data.labels import LabelSpace
from deft_hf.data.layouts import LAYOUTS, split_problem
from deft_hf.data.pictures import check_value_range
from deft_hf.data.presets import PRESETS
from deft_hf.data.streets import LOOKS, STREETS
from deft_hf.recipe.section import Section
from deft_hf.recipe.values import Expected, OneOf, Positive, Size, found, mistake, nearest, rising
from deft_hf.utils.errors import UserError

_Strength = Annotated[float, Field(ge=0)]
_HueStrength = Annotated[float, Field(ge=0, le=0.5)]
_AboveZero = Annotated[float, Field(gt=0)]
Jitter = Annotated[
    tuple[_Strength, _Strength, _Strength, _HueStrength],
    Expected("[brightness, contrast, saturation, hue], four numbers, none below 0, the last at most 0.5"),
]
ScaleRange = Annotated[
    tuple[_AboveZero, float], AfterValidator(rising), Expected("[low, high], two numbers with 0 < low <= high")
]
ValueRange = Annotated[
    tuple[float, float],
    AfterValidator(check_value_range),
    Expected(
        "[low, high], two numbers with low < high: what is black and what is white in images of more than 8 bits"
    ),
]
BlurRange = Annotated[
    tuple[_Strength, float], AfterValidator(rising), Expected("[low, high], two numbers with 0 <= low <= high")
]
_Severity = Annotated[int, Field(ge=SEVERITIES[0], le=SEVERITIES[-1])]
_Preset = Annotated[str, OneOf(PRESETS)]


def _text(name: Any) -> Any:
    return "" if name is None else name


class Entry(Section):
    """A domain, of one of three kinds: `folder`, `hub` or `streets`."""

    name: Annotated[str, BeforeValidator(_text)] = Field(
        default="", description="Name in tables and metric keys. Default: after the place of the images."
    )
    weight: Annotated[_AboveZero, Expected("a number above 0")] | None = Field(
        default=None, description="How often a source domain is drawn beside others. Default: by its number of images."
    )
    labels: _Preset | None = Field(
        default=None,
        description="What the masks hold, where that differs from `data.labels`, such as `mapillary_rein`.",
    )
    corruption: Annotated[str, OneOf(CORRUPTIONS)] | None = Field(
        default=None,
        description="Score corrupted copies of the images; of unseen domains only. They are named `town_fog_3`.",
    )
    severity: Annotated[_Severity | None, Expected("a whole number from 1 to 5, or null for all five")] = Field(
        default=None, description="Severity of the corruption. Default: all five in one domain, each image five times."
    )

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
    def part(self) -> str | None:
        """The split, if only one is taken."""
        return None

    @property
    def origin(self) -> Hashable:
        """Equal for entries of a kind whose images come from the same place."""
        raise NotImplementedError

    def shares_images(self, other: Entry, root: str | None) -> bool:
        """Whether an image may be in both entries; of two splits of one place none is."""
        apart = self.part != other.part and None not in (self.part, other.part)
        return not apart and type(self) is type(other) and self._same_place(other, root)

    def _same_place(self, other: Entry, root: str | None) -> bool:
        return self.origin == other.origin

    def problem(self, root: str | None) -> str | None:
        """What is wrong with the place that the images come from, as `KEY: ...`."""
        return None


_PLACES = {"images", "masks", "image_suffix", "mask_suffix"}


class FolderEntry(Entry):
    """A domain of files: images and masks in two folders under `folder`, see `Domain.from_folder`.

    With a `layout` the folder is the official tree of a data set, see `load_layout`.
    """

    folder: str = Field(description="Folder of the domain; a relative one starts at `data.root`.")
    layout: Annotated[str, OneOf(LAYOUTS)] | None = Field(
        default=None, description="The folder is the official tree of this data set, as it is unpacked."
    )
    split: str | None = Field(default=None, description="Split of `split.json` or of the layout. Default: all images.")
    images: str = Field(default="images", description="Folder of the images in it.")
    masks: str = Field(default="masks", description="Folder of the masks in it.")
    image_suffix: str = Field(
        default="", description="What an image's name has after the part that it shares with its mask."
    )
    mask_suffix: str = Field(
        default="", description="What a mask's name has after the part that it shares with its image."
    )

    @property
    def default_name(self) -> str:
        return Path(self.folder).name

    @property
    def part(self) -> str | None:
        return self.split

    def _same_place(self, other: Entry, root: str | None) -> bool:
        assert isinstance(other, FolderEntry)
        one, two = (entry.resolved_folder(root).resolve() for entry in (self, other))
        if self.layout is not None or other.layout is not None:
            return one == two
        one, two = (one / self.images).resolve(), (two / other.images).resolve()
        return one.is_relative_to(two) or two.is_relative_to(one)

    def label_space(self, data: DataSection) -> LabelSpace:
        if self.layout is not None and self.labels is None and isinstance(data.labels, str) and data.labels in PRESETS:
            return PRESETS[LAYOUTS[self.layout].labels]
        return super().label_space(data)

    def resolved_folder(self, root: str | None) -> Path:
        """The folder itself; a relative one starts at `root` (`data.root`), or at the working folder if None."""
        return Path(root or "").expanduser() / Path(self.folder).expanduser()

    def problem(self, root: str | None) -> str | None:
        folder = self.resolved_folder(root)
        if self.layout is not None and (problem := split_problem(self.layout, self.split)):
            return problem
        if self.layout is not None and (own := sorted(self.model_fields_set & _PLACES)):
            return f"{own[0]}: found beside layout, which knows it; remove one of them"
        if not folder.is_dir():
            return f"folder: found no folder {folder}; correct it, or override data.root=PATH"
        return self._missing(folder) if self.layout is None else None

    def _missing(self, folder: Path) -> str | None:
        for key in ("images", "masks"):
            place = folder / getattr(self, key)
            if not place.is_dir():
                return f"{key}: found no folder {place}; name the one that has the {key}"
        if self.split is not None:
            try:
                split_ids(folder / "split.json", self.split)
            except UserError as error:
                return f"split: {error}"
        return None


class HubEntry(Entry):
    """A domain of a data set on the Hub or in a folder of `datasets`' own kind, see `Domain.from_hub`."""

    hub: str = Field(description="Hub name of a data set, or a folder that `datasets` loads.")
    split: str = Field(description="Split of the data set.")
    image_column: str = Field(default="image", description="Column of the images.")
    mask_column: str = Field(default="mask", description="Column of the masks.")
    config: str | None = Field(default=None, description="Configuration of the data set.")
    revision: str | None = Field(default=None, description="Branch, tag or commit on the Hub. Default: main.")

    @property
    def default_name(self) -> str:
        return Path(self.hub).name

    @property
    def part(self) -> str | None:
        return self.split

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

    streets: Annotated[str, OneOf(LOOKS)] = Field(description="What the drawn streets look like.")
    count: Positive = Field(description="Number of images.")
    seed: Annotated[int, Field(ge=0), Expected("a whole number, 0 or more")] = Field(
        default=0, description="Seed of the drawing: other seeds are other images."
    )
    size: Size = Field(default=(192, 256), description="Size of the images.")

    @property
    def default_name(self) -> str:
        return self.streets

    @property
    def origin(self) -> Hashable:
        return self.streets, self.seed


KINDS: dict[str, type[Entry]] = {"folder": FolderEntry, "hub": HubEntry, "streets": StreetsEntry}


def _of_one_kind(entry: Any) -> Entry:
    if not isinstance(entry, dict):
        raise mistake(f"{found(entry)}, expected a mapping with one of the keys {', '.join(KINDS)}")
    kinds = [kind for kind in KINDS if kind in entry]
    if len(kinds) != 1:
        near = "" if kinds else next(filter(None, (nearest(key, KINDS) for key in entry)), "")
        raise mistake(
            f"found {' and '.join(kinds) or 'none'} of the keys {', '.join(KINDS)}, expected exactly one{near}"
        )
    return KINDS[kinds[0]].model_validate(entry)


Entries = list[Annotated[SerializeAsAny[Entry], BeforeValidator(_of_one_kind)]]


class DataSection(Section):
    """Where images and masks come from and what is done to them. Sizes are (height, width) in pixels."""

    root: str | None = Field(
        default=None, description="Folder that relative `folder:` entries start at. Default: the working folder."
    )
    # `object`, not `Any`: the names of classes stay as written, `1e5` too.
    labels: Annotated[
        Annotated[str, OneOf(("streets", *PRESETS))] | dict[str, object],
        Expected(
            f"one of streets, {', '.join(PRESETS)}, or a mapping with names and, where needed, palette, ids and colors"
        ),
    ] = Field(
        description="The classes: `streets`; `cityscapes`, `cityscapes_train_ids`, `mapillary` or `mapillary_rein` "
        "(the nineteen Cityscapes classes, from the ids that the name says); or a mapping with `names` and, where "
        "needed, `palette`, `ids` (raw id → class or 255) and `colors`."
    )
    source: Annotated[Entries, Field(min_length=1), Expected("a list of at least one domain to train on")] = Field(
        description="Domains to train on, each with an optional `weight`."
    )
    validation: Annotated[Entries, Expected("a list of source domains to choose a checkpoint on")] = Field(
        default=[], description="Source images to score on, and to choose a checkpoint on."
    )
    unseen: Annotated[Entries, Expected("a list of domains that are only ever evaluated on")] = Field(
        default=[], description="Domains that are only ever scored."
    )
    image_size: Size | None = Field(
        default=None,
        description="Images are resized to it before the random scale, and for evaluation; scores are at the label's "
        "own size. Default: own size.",
    )
    crop_size: Size | None = Field(default=None, description="Size of a random crop. Default: `image_size`.")
    scale: ScaleRange = Field(default=(0.5, 2.0), description="Range of the random scale.")
    flip: Annotated[float, Field(ge=0, le=1), Expected("a probability, from 0 to 1")] = Field(
        default=0.5, description="Probability of a horizontal flip."
    )
    color_jitter: Jitter | None = Field(
        default=(0.4, 0.4, 0.4, 0.1), description="Strength of the random brightness, contrast, saturation and hue."
    )
    blur: BlurRange | None = Field(
        default=(0.15, 1.3), description="Range of the standard deviation of the random blur."
    )
    max_class_share: Annotated[float, Field(gt=0, le=1), Expected("a share, above 0 and at most 1")] = Field(
        default=0.75, description="A crop is drawn again while one class fills more of it."
    )
    recolor: bool = Field(default=False, description="Add the authors' LAB-recolored copy of each crop to the batch.")
    value_range: ValueRange | None = Field(
        default=None,
        description="What is black and what is white in images of more than 8 bits, such as `[0, 4095]`. Default: "
        "16 bits that are filled; anything else is refused.",
    )
    window: Size | None = Field(
        default=None, description="Window of sliding-window evaluation. Default: the whole image."
    )
    stride: Size | None = Field(default=None, description="Step between windows. Default: two thirds of the window.")
    images_while_training: Positive | None = Field(
        default=None,
        description="How many images of a domain, evenly spaced, are scored while training; the final scores are of "
        "all. Default: all.",
    )
    check: bool = Field(default=True, description="Decode every file before training.")
    unreadable: Literal["stop", "skip"] = Field(
        default="stop",
        description="A file that cannot be read: `stop`, or `skip` and count it: in training the next image of the "
        "domain stands in, scores are without it.",
    )

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
