"""Any segmentation model, ready to use: a picture in, the class of every pixel out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from deft_hf.data.labels import LabelSpace, default_palette
from deft_hf.data.pictures import check_value_range
from deft_hf.data.png_rows import PngRows
from deft_hf.data.presets import PRESETS
from deft_hf.data.streets import STREETS
from deft_hf.models.families import SegmentationFamily, fixed_size
from deft_hf.models.opening import inference_family, open_model
from deft_hf.models.processor import open_processor, segmentation_processor
from deft_hf.scoring.inference import check_stride, predict_logits, probabilities_of
from deft_hf.scoring.most_likely import most_likely
from deft_hf.scoring.test_time import Views
from deft_hf.scoring.windows import sliding_window_classes
from deft_hf.utils.errors import UserError, first_line
from deft_hf.utils.files import RECIPE
from deft_hf.utils.integrity import refuse_damaged
from deft_hf.utils.outputs import OutputFolder
from deft_hf.utils.places import name_problem, new_file

if TYPE_CHECKING:
    from deft_hf.data.sizes import EvalSize

Size = tuple[int, int]
_ROWS = 256  # of a picture that are drawn and counted at a time
# Noise of a camera is not compressed well, however long it is tried.
COMPRESS_LEVEL = {"classes": 6, "colors": 6, "overlays": 1}
_NAMED = {"streets": STREETS, **PRESETS}


@dataclass(frozen=True)
class Segmenter:
    """A model with what stands before and after it. Build it with [`Segmenter.open`].

    Args:
        model (`PreTrainedModel`):
            The model, in eval mode.
        processor (`BaseImageProcessor`):
            Prepares an image.
        family (`SegmentationFamily`):
            How logits come out of the model's outputs.
        names (`list[str]`):
            Names of the classes, by id.
        palette (`np.ndarray`):
            Colours of the classes, uint8 (classes, 3).
        size (`tuple[int, int]` or `"own"`, *optional*):
            (height, width) that images are resized to first; `"own"` leaves them at their own size. By default the
            processor decides.
        window (`tuple[int, int]`, *optional*):
            (height, width) of a sliding window, see [`~deft_hf.scoring.inference.predict`].
        stride (`tuple[int, int]`, *optional*):
            Step of the window, down and across.
        views (`Views`, *optional*):
            Test-time augmentation; by default an image is seen once, as it is.
        sizes (`Mapping[str, EvalSize]`, *optional*, defaults to `{}`):
            By domain, what its images are resized to, see [`Segmenter.at`].

    Example:

    ```python
    from PIL import Image

    from deft_hf.runs.segmenter import Segmenter

    segmenter = Segmenter.open("outputs/quickstart")
    image = Image.open("street.jpg").convert("RGB")
    ids = segmenter.classes(image)
    segmenter.overlay(image, ids).save("overlay.png")
    ```
    """

    model: PreTrainedModel
    processor: BaseImageProcessor
    family: SegmentationFamily
    names: list[str]
    palette: np.ndarray
    size: Size | Literal["own"] | None = None
    window: Size | None = None
    stride: Size | None = None
    views: Views = Views()
    sizes: Mapping[str, EvalSize] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.stride is not None:
            if self.window is None:
                raise UserError(f"stride: found {self.stride} without a window; give a window, or remove it")
            check_stride(self.stride, self.window)
        self.views.check(one_size=self.family.side is not None and self.window is None)

    @classmethod
    def open(
        cls,
        name: str,
        revision: str | None = None,
        device: str | None = None,
        size: Size | Literal["own"] | None = None,
        window: Size | None = None,
        stride: Size | None = None,
        trust_remote_code: bool = False,
        views: Views = Views(),  # noqa: B008 (frozen)
    ) -> Segmenter:
        """Opens a model by its Hub name or folder.

        Args:
            name (`str`):
                Hub name, final folder, export or checkpoint. The folder of a run has its own colours.
            revision (`str`, *optional*, defaults to `main`):
                Branch, tag or commit on the Hub.
            device (`str`, *optional*):
                Such as `cpu` or `cuda:1`; by default an accelerator where there is one.
            size (`tuple[int, int]` or `"own"`, *optional*):
                See the class. With a window, images keep their own size by default: what is resized to the size of a
                window needs none.
            window (`tuple[int, int]`, *optional*):
                See the class.
            stride (`tuple[int, int]`, *optional*):
                See the class.
            trust_remote_code (`bool`, *optional*, defaults to `False`):
                Run Python code of the repository, at the revision named; without it, none is ever run.
            views (`Views`, *optional*):
                See the class.

        Raises:
            UserError: The model or its processor cannot be opened, it cannot see the `views`, or there is no such
                device.
        """
        refuse_damaged(Path(name).expanduser())
        model = open_model(name, revision, trust_remote_code)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            model.to(device)  # type: ignore[arg-type]  # transformers wraps it and loses `self`
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"device: found {device!r}, which cannot be used here ({first_line(error)})") from error
        known: dict[Any, str] = model.config.id2label or {}
        names = [str(known.get(index, index)) for index in range(model.config.num_labels or 0)]
        if window is not None and size is None:
            size = "own"
        palette = np.array(_own_palette(Path(name).expanduser(), names) or default_palette(len(names)), np.uint8)
        family, processor = inference_family(model), open_processor(name, revision, trust_remote_code)
        only = fixed_size(model.config)
        if only is not None and not (getattr(processor, "size", None) or {}).get("height"):
            # It keeps the aspect ratio, then cuts images up or pads them.
            processor = segmentation_processor(processor, only, model.config.model_type)
        return cls(model, processor, family, names, palette, size, window, stride, views)

    def at(self, domain: str) -> Segmenter:
        """The segmenter as it sees images of a domain: resized to the domain's own size, where `sizes` has one."""
        if domain not in self.sizes:
            return self
        return replace(self, processor=segmentation_processor(self.processor, self.sizes[domain]))

    @property
    def value_range(self) -> tuple[float, float] | None:
        """What was black and what was white in the images of more than 8 bits that the model was trained on."""
        return check_value_range(getattr(self.processor, "value_range", None))

    def classes(self, image: Image.Image, pixels: Tensor | None = None) -> np.ndarray:
        """Class ids (H, W) of an RGB image at its own size: uint8, or uint16 of models with more than 256 classes.

        Args:
            image (`Image.Image`):
                The image.
            pixels (`Tensor`, *optional*):
                What `pixels` made of it, if that is known already.

        Raises:
            UserError: The model takes no images of this size.
        """
        if self.window is None or pixels is not None or not self.slides_over(image):
            return self.most_likely(self.logits(image, pixels))

        found = np.empty((image.height, image.width), np.uint8 if len(self.names) <= 256 else np.uint16)
        top = 0
        for rows in self.rows(image):
            found[top : top + len(rows)] = rows
            top += len(rows)
        return found

    def rows(self, image: Image.Image | PngRows) -> Iterator[np.ndarray]:
        """What `classes` gives of an image that a window slides over, from its top to its bottom.

        Args:
            image (`Image.Image` or `PngRows`):
                The image, of which `slides_over` is true.

        Yields:
            `np.ndarray`: the next rows (rows, W).
        """
        assert self.window is not None

        def cut(top: int, left: int, bottom: int, right: int) -> Tensor:
            return self.pixels(image.crop((left, top, right, bottom)))

        size = (image.height, image.width)
        with _told_of(self.window):
            for rows in sliding_window_classes(self.model, self.family, cut, size, self.window, self.stride):
                yield self._as_array(rows)

    def slides_over(self, image: Image.Image | PngRows) -> bool:
        """Whether `classes` prepares and classifies an image a window at a time, so that it may be of any size.

        Only where the model sees it as it is: logits that are resized or averaged over views are held as a whole.
        """
        own = self.size == "own" if self.size else getattr(self.processor, "do_resize", None) is False
        if self.window is None or not own or not hasattr(self.processor, "do_resize") or not self.views.are_one:
            return False
        down, across = image.height - self.window[0], image.width - self.window[1]
        return min(down, across) >= 0 < max(down, across)

    def most_likely(self, logits: Tensor) -> np.ndarray:
        """Class ids (H, W) of logits (classes, H, W), as `classes` gives them."""
        return self._as_array(most_likely(logits[None])[0])

    def _as_array(self, ids: Tensor) -> np.ndarray:
        return ids.cpu().numpy().astype(np.uint8 if len(self.names) <= 256 else np.uint16, copy=False)

    def logits(self, image: Image.Image, pixels: Tensor | None = None) -> Tensor:
        """Logits of an RGB image at its own size, float32 (classes, H, W), on the device of the model.

        Args:
            image (`Image.Image`):
                The image.
            pixels (`Tensor`, *optional*):
                What `pixels` made of it, if that is known already.

        Raises:
            UserError: The model takes no images of this size.
        """
        pixels = self.pixels(image) if pixels is None else pixels
        return self.logits_of(pixels, (image.height, image.width))[0]

    def logits_of(self, pixels: Tensor, size: Size) -> Tensor:
        """Logits of prepared images at one size, float32 (N, classes, *size), on the device of the model.

        Args:
            pixels (`Tensor`):
                What `pixels` made of them, float (N, 3, h, w).
            size (`tuple[int, int]`):
                Height and width that all of them have.

        Raises:
            UserError: The model takes no images of this size.
        """
        with _told_of((pixels.shape[-2], pixels.shape[-1])):
            return predict_logits(self.model, self.family, pixels, size, self.window, self.stride, self.views)

    def probabilities(self, image: Image.Image) -> Tensor:
        """Probabilities of the classes at each pixel of an RGB image, float32 (classes, H, W), on the model's device.

        Those of per-pixel models are the softmax of the logits; those of mask models the scores by their sum, see
        [`~deft_hf.models.masks.MaskClassification.logits`].

        Raises:
            UserError: As `logits`.
        """
        return probabilities_of(self.family, self.logits(image))()

    def pixels(self, image: Image.Image) -> Tensor:
        """What the model sees of an RGB image: float (1, 3, h, w), on its device."""
        options = {} if self.size is None else {"do_resize": False}
        prepared = image
        if isinstance(self.size, tuple):
            prepared = image.resize(self.size[::-1], Image.Resampling.BILINEAR)
        for change in ("do_center_crop", "do_pad"):  # the whole image is classified, and nothing beside it
            if getattr(self.processor, change, False):
                options[change] = False
        pixels = self.processor(images=prepared, return_tensors="pt", **options)["pixel_values"]
        return pixels.to(self.model.device)

    def paint(self, ids: np.ndarray) -> Image.Image:
        """Class ids in the colours of the classes."""
        return Image.fromarray(self.palette[ids])

    def overlay(self, image: Image.Image, ids: np.ndarray) -> Image.Image:
        """The colours of the classes over the image, half and half."""
        over = image.convert("RGB")  # a copy
        self.draw(over, ids, 0.5)
        return over

    def draw(self, canvas: Image.Image, ids: np.ndarray, opacity: float) -> None:
        """Draws the colours of the classes on an RGB image, a few rows at a time."""
        for top in range(0, canvas.height, _ROWS):
            rows = (0, top, canvas.width, min(top + _ROWS, canvas.height))
            canvas.paste(Image.blend(canvas.crop(rows), self.paint(ids[top : top + _ROWS]), opacity), rows)

    def shares(self, ids: np.ndarray) -> dict[str, float]:
        """Share of the pixels of each class that occurs, the largest first."""
        return self.shares_of(self.counts(ids))

    def counts(self, ids: np.ndarray) -> np.ndarray:
        """Pixels of each class."""
        strips = (ids[top : top + _ROWS].ravel() for top in range(0, len(ids), _ROWS))
        return np.sum([np.bincount(strip, minlength=len(self.names)) for strip in strips], axis=0)

    def shares_of(self, counts: np.ndarray) -> dict[str, float]:
        """As `shares`, of the pixels of each class."""
        shares = counts / counts.sum()
        return {
            self.names[index]: float(shares[index]) for index in np.argsort(-shares, kind="stable") if shares[index]
        }

    def save(
        self,
        folder: str | os.PathLike | OutputFolder,
        key: str,
        image: Image.Image,
        ids: np.ndarray,
        place: str = "",
        overlays: bool = True,
        in_place: bool = False,
    ) -> dict[str, str]:
        """Writes `classes/KEY.png` (ids), `colors/KEY.png` and `overlays/KEY.png`; gives their paths by kind.

        Args:
            folder (`str`, `os.PathLike` or `OutputFolder`):
                The folder to write to.
            key (`str`):
                Id of the image: a plain relative path.
            image (`Image.Image`):
                The image.
            ids (`np.ndarray`):
                From `classes`.
            place (`str`, *optional*, defaults to `""`):
                The folder in `folder` that the three lie in.
            overlays (`bool`, *optional*, defaults to `True`):
                Whether to write the overlay too, which is most of the work.
            in_place (`bool`, *optional*, defaults to `False`):
                Whether an RGB image may be drawn on, so that no copy of it is held.

        Raises:
            UserError: A file would lie outside of `folder`, or is there already.
        """
        if problem := name_problem(key):
            raise UserError(f"key: {key[:200]!r} {problem}, so that no picture can be named after it.")
        written: dict[str, str] = {}

        def write(kind: str, picture: Image.Image) -> None:
            name = f"{place}/{kind}/{key}.png".removeprefix("/")
            path = folder.file(name) if isinstance(folder, OutputFolder) else new_file(Path(folder), name)
            picture.save(path, compress_level=COMPRESS_LEVEL[kind])
            written[kind] = str(path)

        write("classes", Image.fromarray(ids))
        canvas = image if in_place else image.convert("RGB")
        if overlays:
            self.draw(canvas, ids, 0.5)
            write("overlays", canvas)
        self.draw(canvas, ids, 1.0)
        canvas.info = {}  # colours of classes have no profile of a camera
        write("colors", canvas)
        return {kind: written[kind] for kind in ("classes", "colors", "overlays") if kind in written}

    def legend(self) -> list[dict[str, object]]:
        """Id, name and colour of every class."""
        colors = self.palette.tolist()
        return [{"id": index, "name": name, "color": colors[index]} for index, name in enumerate(self.names)]


@contextmanager
def _told_of(size: Size) -> Iterator[None]:
    """An error that names the pixels (height, width) that a model was given and refused."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if isinstance(error, UserError | torch.cuda.OutOfMemoryError):
            raise
        raise UserError(
            f"the model cannot be run on {size[0]} x {size[1]} pixels ({first_line(error)}): choose another size or "
            "window."
        ) from error


def _own_palette(folder: Path, names: list[str]) -> tuple | None:
    """The colours of the run whose folder, or whose checkpoint, this is."""
    for place in (folder, folder.parent):
        try:
            labels = yaml.safe_load((place / RECIPE).read_text("utf-8"))["data"]["labels"]
            space = LabelSpace.from_mapping(labels) if isinstance(labels, dict) else _NAMED[labels]
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
            continue
        if list(space.names) == names:
            return space.palette
    return None
