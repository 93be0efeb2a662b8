"""The domains of a recipe's `data` section: one class for each kind of entry."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from pydantic import BeforeValidator, Field, PrivateAttr, SerializeAsAny, model_validator

from deft_hf.data.annotations import FORMATS
from deft_hf.data.corruptions import CORRUPTIONS, SEVERITIES, corrupted_name
from deft_hf.data.files import split_ids
from deft_hf.data.hub import share_rows
from deft_hf.data.labels import LabelSpace
from deft_hf.data.layouts import LAYOUTS, condition_problem, read_as, split_problem
from deft_hf.data.places import images_folder
from deft_hf.data.presets import PRESETS
from deft_hf.data.streets import LOOKS, STREETS
from deft_hf.recipe.section import Section
from deft_hf.recipe.values import EvalSize, Expected, OneOf, Positive, Size, found, mistake, nearest
from deft_hf.utils.errors import UserError

AboveZero = Annotated[float, Field(gt=0)]
_Severity = Annotated[int, Field(ge=SEVERITIES[0], le=SEVERITIES[-1])]
NO_LABELS = "none"
_Preset = Annotated[str, OneOf((*PRESETS, NO_LABELS))]
Labels = str | dict[str, object]
"""What `data.labels` may hold: a name, or a mapping for `LabelSpace.from_mapping`."""


def _text(name: Any) -> Any:
    return "" if name is None else name


class Entry(Section):
    """A domain, of one of three kinds: `folder`, `hub` or `streets`."""

    name: Annotated[str, BeforeValidator(_text)] = Field(
        default="", description="Name in tables and metric keys. Default: after the place of the images."
    )
    weight: Annotated[AboveZero, Expected("a number above 0")] | None = Field(
        default=None, description="How often a source domain is drawn beside others. Default: by its number of images."
    )
    labels: _Preset | None = Field(
        default=None,
        description="What the masks hold, where that differs from `data.labels`, such as `mapillary_rein`; `none` of "
        "an unseen place that nobody labelled.",
    )
    eval_size: EvalSize | None = Field(
        default=None, description="What images of this scored domain are resized to. Default: `data.eval_size`."
    )
    halve: bool = Field(
        default=False,
        description="Halve images and masks, whose size scores are then at (Rein's Mapillary).",
    )
    crop_or_pad: Positive | None = Field(
        default=None,
        description="Make squares of this side of images and masks, by height, cropped or padded to the sides "
        "(RobustNet's Mapillary).",
    )
    pad_label: Literal["ignore", 0] = Field(
        default="ignore",
        description="What that padding counts as: `ignore`, or 0, the first class, as in RobustNet's public code.",
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

    @property
    def labelled(self) -> bool:
        """Whether there are masks."""
        return self.labels != NO_LABELS

    def label_space(self, classes: Labels) -> LabelSpace:
        """What the masks hold, of the recipe's classes (`data.labels`)."""
        if self.labels in (None, NO_LABELS):
            return label_space(classes)
        return read_as(self.labels, classes) if isinstance(classes, str) else PRESETS[self.labels]

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


_PLACES = ("annotations", "image_suffix", "images", "mask_suffix", "masks")


class FolderEntry(Entry):
    """A domain of files: images and masks in two folders under `folder`, see `Domain.from_folder`.

    With a `layout` the folder is the official tree of a data set, see `load_layout`; with `annotations` it is the
    export of an annotation tool, see `Domain.from_annotations`.
    """

    folder: str = Field(description="Folder of the domain; a relative one starts at `data.root`.")
    layout: Annotated[str, OneOf(LAYOUTS)] | None = Field(
        default=None, description="The folder is the official tree of this data set, as it is unpacked."
    )
    condition: str | None = Field(
        default=None,
        description="Condition of a layout that has several: `fog`, `night`, `rain` or `snow` of ACDC, `beta_0.02` of "
        "Foggy Cityscapes, `urban` or `rural` of LoveDA. Default: all of them.",
    )
    annotations: Annotated[str, OneOf(FORMATS)] | None = Field(
        default=None, description="The folder is a label export of this format, as it was unpacked."
    )
    split: Annotated[
        Annotated[float, Field(gt=0, lt=1)] | str | None,
        Expected("text: the name of a split; or a share of the images, above 0 and below 1"),
    ] = Field(
        default=None,
        description="Split of `split.json`, of the layout or of the label export; or a share of the images, such as "
        "0.2, that keeps look-alike neighbours together: in `validation` and `unseen` it is held out from the end, in "
        "`source` taken from the beginning. Default: all images; in `source` the rest of what `validation` holds out.",
    )
    images: str = Field(default="images", description="Folder of the images in it.")
    masks: str = Field(default="masks", description="Folder of the masks in it.")
    image_suffix: str = Field(
        default="", description="What an image's name has after the part that it shares with its mask."
    )
    mask_suffix: str = Field(
        default="", description="What a mask's name has after the part that it shares with its image."
    )

    _from_end: bool = PrivateAttr(True)

    @property
    def default_name(self) -> str:
        name = Path(self.folder).name
        return name if self.condition is None else f"{name}_{self.condition}"

    @property
    def part(self) -> str | None:
        if not isinstance(self.split, str):
            return None
        is_all = self.layout is not None and LAYOUTS[self.layout].splits.get(self.split) == ""
        return None if is_all else self.split

    @property
    def portion(self) -> str | float | None:
        """The split as `Domain.from_folder` takes it: a share that is taken from the end is negative."""
        return -self.split if isinstance(self.split, float) and self._from_end else self.split

    def shares_images(self, other: Entry, root: str | None) -> bool:
        if isinstance(other, FolderEntry) and self._same_list(other, root):
            (low, high), (start, end) = self._interval, other._interval
            if high <= start or end <= low:
                return False
            if self.layout is None and self.annotations is None and self.part and other.part:
                with suppress(UserError):  # said of the entry
                    one, two = (split_ids(self._lists(root), part) for part in (self.part, other.part))
                    return not {*one}.isdisjoint(two)
        return super().shares_images(other, root)

    def train_on_the_rest(self, held_out: Iterable[Entry], root: str | None) -> None:
        """Take, as a `source` entry, what a share leaves that one of the entries holds out of the same images."""
        self._from_end = False
        for other in held_out:
            if self.split is None and isinstance(other, FolderEntry):
                if isinstance(other.split, float) and self._same_list(other, root):
                    self.split = round(1 - other.split, 9)

    @property
    def _interval(self) -> tuple[float, float]:
        if not isinstance(self.split, float):
            return 0, 1
        return (round(1 - self.split, 9), 1) if self._from_end else (0, self.split)

    def _same_list(self, other: FolderEntry, root: str | None) -> bool:
        """Whether both entries split one list of pairs."""
        folders = [entry.resolved_folder(root).resolve() for entry in (self, other)]
        keys = ("layout", "condition", *_PLACES)
        return folders[0] == folders[1] and all(getattr(self, key) == getattr(other, key) for key in keys)

    def _same_place(self, other: Entry, root: str | None) -> bool:
        assert isinstance(other, FolderEntry)
        one, two = (entry.resolved_folder(root).resolve() for entry in (self, other))
        if self.layout is not None or other.layout is not None:
            apart = self.condition != other.condition and None not in (self.condition, other.condition)
            return one == two and not apart
        one, two = (each.images_folder(root).resolve() for each in (self, other))
        return one.is_relative_to(two) or two.is_relative_to(one)

    def label_space(self, classes: Labels) -> LabelSpace:
        if self.layout is not None and self.labels is None and isinstance(classes, str):
            return read_as(LAYOUTS[self.layout].labels, classes)
        return super().label_space(classes)

    def resolved_folder(self, root: str | None) -> Path:
        """The folder itself; a relative one starts at `root` (`data.root`), or at the working folder if None."""
        return Path(root or "").expanduser() / Path(self.folder).expanduser()

    def _lists(self, root: str | None) -> Path:
        return self.resolved_folder(root) / "split.json"

    def images_folder(self, root: str | None) -> Path:
        """The folder of the images; of a place without labels it may be the folder itself, of a label export it is."""
        folder = self.resolved_folder(root)
        if self.annotations is not None:
            return folder
        return folder / self.images if self.labelled else images_folder(folder, self.images)

    def problem(self, root: str | None) -> str | None:
        folder = self.resolved_folder(root)
        masks = ("annotations", "layout", "condition", "masks", "mask_suffix")
        if not self.labelled and (own := [key for key in masks if self._differs(key)]):
            return f"{own[0]}: found beside labels: none, which reads images alone; remove one of them"
        if self.layout is not None and (problem := split_problem(self.layout, self.split)):
            return problem
        if self.layout is None and self.condition is not None:
            return f"condition: found {self.condition} without a layout; remove it, or name the layout that has it"
        if self.layout is not None and (problem := condition_problem(self.layout, self.condition)):
            return problem
        known_by = next((key for key in ("layout", "annotations") if getattr(self, key) is not None), None)
        if known_by and (own := [key for key in _PLACES if key != known_by and self._differs(key)]):
            return f"{own[0]}: found beside {known_by}, which knows it; remove one of them"
        if not folder.is_dir():
            return f"folder: found no folder {folder}; correct it, or override data.root=PATH"
        return None if known_by else self._missing(folder, root)

    def _differs(self, key: str) -> bool:
        return getattr(self, key) != type(self).model_fields[key].default

    def _missing(self, folder: Path, root: str | None) -> str | None:
        places = {"images": self.images_folder(root), "masks": folder / self.masks}
        for key in ("images", "masks") if self.labelled else ("images",):
            if not places[key].is_dir():
                return f"{key}: found no folder {places[key]}; name the one that has the {key}"
        if isinstance(self.split, str):
            try:
                split_ids(self._lists(root), self.split)
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
    def origin(self) -> Hashable:
        hub = Path(self.hub)
        return hub.resolve() if hub.exists() else self.hub, self.config, self.image_column

    def shares_images(self, other: Entry, root: str | None) -> bool:
        return isinstance(other, HubEntry) and self.origin == other.origin and share_rows(self.split, other.split)

    def problem(self, root: str | None) -> str | None:
        if not self.labelled and self.mask_column != type(self).model_fields["mask_column"].default:
            return "mask_column: found beside labels: none, which reads images alone; remove one of them"
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


def label_space(labels: Labels) -> LabelSpace:
    """The classes that `data.labels` declares.

    Raises:
        UserError: It contradicts itself.
    """
    if isinstance(labels, str):
        return STREETS if labels == "streets" else PRESETS[labels]
    return LabelSpace.from_mapping(labels)


def is_hub_name(text: str) -> bool:
    """Whether the text could be the name of a repository on the Hub."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True
