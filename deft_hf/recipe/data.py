"""The `data` section of a recipe: its domains, their classes, and how their images reach the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from deft_hf.data.augmentations import AUGMENTATIONS
from deft_hf.data.labels import LabelSpace
from deft_hf.data.pictures import check_value_range
from deft_hf.data.presets import PRESETS
from deft_hf.recipe.domains import AboveZero, Entries, FolderEntry, label_space
from deft_hf.recipe.protocols import PROTOCOLS, fill_in
from deft_hf.recipe.section import Section
from deft_hf.recipe.values import EvalSize, Expected, OneOf, Positive, Size, rising

if TYPE_CHECKING:
    from deft_hf.data import sizes

_Strength = Annotated[float, Field(ge=0)]
_HueStrength = Annotated[float, Field(ge=0, le=0.5)]
Jitter = Annotated[
    tuple[_Strength, _Strength, _Strength, _HueStrength],
    Expected("[brightness, contrast, saturation, hue], four numbers, none below 0, the last at most 0.5"),
]
ScaleRange = Annotated[
    tuple[AboveZero, float], AfterValidator(rising), Expected("[low, high], two numbers with 0 < low <= high")
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
_Probability = Annotated[float, Field(ge=0, le=1), Expected("a probability, from 0 to 1")]
_Share = Annotated[float, Field(gt=0, le=1), Expected("a share, above 0 and at most 1")]
# What a setting of `TrainTransform` is called in a recipe.
_KEYS = {"jitter": "color_jitter"}


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
        "(the nineteen Cityscapes classes, from the ids that the name says); `synthia16` (sixteen of them), "
        "`street7`, or a data set's own, such as `idd26` and `voc`; or a mapping with `names` and, where needed, "
        "`palette`, `ids` (raw id, or name in a label export → class or 255; `rest` for all others) and `colors`."
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
    protocol: Annotated[str, OneOf(PROTOCOLS)] | None = Field(
        default=None,
        description="Sizes, augmentation and sampling of a published protocol, and test sizes by layout; what is "
        "stated beside it wins.",
    )
    image_size: Size | None = Field(
        default=None,
        description="Images are resized to it before the random scale, and for evaluation; scores are at the label's "
        "own size. Default: own size.",
    )
    eval_size: EvalSize | None = Field(
        default=None,
        description="What images are resized to for evaluation and prediction: `[height, width]`; `{short: N}`, "
        "`{long: N}` or both, which keep the aspect ratio, with both as large as fits; or `own`. Default: "
        "`image_size`.",
    )
    crop_size: Size | None = Field(default=None, description="Size of a random crop. Default: `image_size`.")
    augment: Annotated[str, OneOf(AUGMENTATIONS)] | None = Field(
        default=None,
        description="The kind of pictures, which sets `flip`, `vertical_flip`, `turns`, `rotation`, `scale`, "
        "`color_jitter` and `blur`; what is stated beside it wins. Default: as for `street`.",
    )
    scale: ScaleRange = Field(default=(0.5, 2.0), description="Range of the random scale.")
    flip: _Probability = Field(default=0.5, description="Probability of a horizontal flip.")
    vertical_flip: _Probability = Field(default=0.0, description="Probability of a vertical flip.")
    turns: bool = Field(default=False, description="Turn by 0, 90, 180 or 270 degrees, each as likely.")
    rotation: Annotated[float, Field(ge=0, le=180), Expected("an angle in degrees, from 0 to 180")] = Field(
        default=0.0,
        description="Largest angle of a random rotation either way, in degrees; corners beyond the image are ignored.",
    )
    color_jitter: Jitter | None = Field(
        default=(0.4, 0.4, 0.4, 0.1), description="Strength of the random brightness, contrast, saturation and hue."
    )
    color_jitter_probability: _Probability = Field(
        default=0.5, description="Probability that a crop's colours are changed by `color_jitter`."
    )
    blur: BlurRange | None = Field(
        default=(0.15, 1.3), description="Range of the standard deviation of the random blur."
    )
    max_class_share: _Share = Field(
        default=0.75, description="A crop is drawn again while one class fills more of it."
    )
    sampling: Literal["uniform", "class_uniform", "rare_class"] = Field(
        default="uniform",
        description="What an epoch shows: `uniform`, every image once; `class_uniform`, a share of the crops around "
        "the classes in turn (RobustNet); `rare_class`, classes by their rarity (DAFormer).",
    )
    class_uniform_share: _Share = Field(default=0.5, description="Share of the crops that are drawn by class.")
    class_uniform_tile: Positive = Field(
        default=1024, description="Side in pixels of the parts of an image in which the middles of classes are taken."
    )
    rare_class_temperature: AboveZero = Field(
        default=0.01, description="T of P(c) = softmax((1 - f_c) / T), with the shares f_c of the labelled pixels."
    )
    rare_class_pixels: Positive | None = Field(
        default=None,
        description="An image shows a class with more than so many pixels. Default: 3000, less for crops of less than "
        "512 x 512.",
    )
    rare_class_crop_pixels: Positive | None = Field(
        default=None,
        description="Crops are drawn again, up to 10 times in all, until they show the class with more than so many "
        "pixels. Default: 1500 of 512 x 512, by area.",
    )
    transform: Annotated[str | None, Field(pattern=r"^[\w.]+:[\w.]+$"), Expected("package.module:callable")] = Field(
        default=None,
        description="A function of your own that is called with every training crop and its mask.",
    )
    photometric_distortion: bool = Field(
        default=False,
        description="mmsegmentation's PhotoMetricDistortion in place of `color_jitter`.",
    )
    style: Literal["randconv", "augmix", "fourier"] | None = Field(
        default=None,
        description="Another look for crops: `randconv` (random convolutions), `augmix` (of colors alone) or "
        "`fourier` (PASTA).",
    )
    style_probability: _Probability = Field(default=0.5, description="Probability of the `style`.")
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
    test_scales: Annotated[list[AboveZero], Field(min_length=1), Expected("a list of scales above 0")] = Field(
        default=[1.0],
        description="Scales at which evaluation sees each image; the probabilities are averaged. Default: as it is.",
    )
    test_flip: bool = Field(default=False, description="Whether evaluation sees each image mirrored too.")
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
    def _fill_in_protocol(self) -> DataSection:
        fill_in(self)
        return self

    @model_validator(mode="after")
    def _distort_in_place_of_the_jitter(self) -> DataSection:
        if self.photometric_distortion and "color_jitter" not in self.model_fields_set:
            self.color_jitter = None
        return self

    @model_validator(mode="after")
    def _fill_in_augmentation(self) -> DataSection:
        for name, value in AUGMENTATIONS.get(self.augment or "", {}).items():
            key = _KEYS.get(name, name)
            if key not in self.model_fields_set:
                setattr(self, key, value)
        return self

    @model_validator(mode="after")
    def _fill_in_crop_size(self) -> DataSection:
        self.crop_size = self.crop_size or self.image_size
        return self

    @model_validator(mode="after")
    def _fill_in_what_is_left(self) -> DataSection:
        for entry in self.source:
            if isinstance(entry, FolderEntry):
                entry.train_on_the_rest(self.validation, self.root)
        return self

    def shown_size(self) -> sizes.EvalSize:
        """What images are resized to for evaluation."""
        return self.eval_size or self.image_size

    def shown_sizes(self) -> dict[str, sizes.EvalSize]:
        """By name, what the images of the domains that are scored are resized to."""
        return {entry.name: entry.eval_size or self.shown_size() for entry in (*self.validation, *self.unseen)}

    def label_space(self) -> LabelSpace:
        """The classes.

        Raises:
            UserError: `labels` contradicts itself.
        """
        return label_space(self.labels)
