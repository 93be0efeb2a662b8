"""Any segmentation model, ready to use: a picture in, the class of every pixel out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from deft_hf.data.labels import LabelSpace, default_palette
from deft_hf.data.pictures import check_value_range
from deft_hf.data.presets import PRESETS
from deft_hf.data.sizes import EvalSize
from deft_hf.data.streets import STREETS
from deft_hf.models.families import SegmentationFamily, fixed_size
from deft_hf.models.opening import inference_family, open_model
from deft_hf.models.processor import open_processor, segmentation_processor
from deft_hf.scoring.inference import predict_logits, probabilities_of
from deft_hf.scoring.most_likely import most_likely
from deft_hf.scoring.test_time import Views
from deft_hf.trainer.components import refuse_damaged
from deft_hf.utils.errors import UserError, first_line
from deft_hf.utils.files import RECIPE
from deft_hf.utils.outputs import OutputFolder
from deft_hf.utils.places import name_problem, new_file

Size = tuple[int, int]
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

        Raises:
            UserError: The model or its processor cannot be opened, or there is no such device.
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
        return cls(model, processor, family, names, palette, size, window, stride)

    def at(self, domain: str) -> Segmenter:
        """The segmenter as it sees images of a domain: resized to the domain's own size, where `sizes` has one."""
        if domain not in self.sizes:
            return self
        return replace(self, processor=segmentation_processor(self.processor, self.sizes[domain]))

    @property
    def value_range(self) -> tuple[float, float] | None:
        """What was black and what was white in the images of more than 8 bits that the model was trained on."""
        return check_value_range(getattr(self.processor, "value_range", None))

    def classes(self, image: Image.Image) -> np.ndarray:
        """Class ids (H, W) of an RGB image at its own size: uint8, or uint16 of models with more than 256 classes.

        Raises:
            UserError: The model takes no images of this size.
        """
        return self.most_likely(self.logits(image))

    def most_likely(self, logits: Tensor) -> np.ndarray:
        """Class ids (H, W) of logits (classes, H, W), as `classes` gives them."""
        ids = most_likely(logits[None])[0]
        return ids.cpu().numpy().astype(np.uint8 if len(self.names) <= 256 else np.uint16)

    def logits(self, image: Image.Image) -> Tensor:
        """Logits of an RGB image at its own size, float32 (classes, H, W), on the device of the model.

        Raises:
            UserError: The model takes no images of this size.
        """
        pixels = self.pixels(image)
        size = (image.height, image.width)
        try:
            return predict_logits(self.model, self.family, pixels, size, self.window, self.stride, self.views)[0]
        except (RuntimeError, ValueError) as error:
            if isinstance(error, UserError | torch.cuda.OutOfMemoryError):
                raise
            raise UserError(
                f"the model cannot be run on {pixels.shape[-2]} x {pixels.shape[-1]} pixels ({first_line(error)}): "
                "choose another size or window."
            ) from error

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
        return Image.blend(image.convert("RGB"), self.paint(ids), 0.5)

    def shares(self, ids: np.ndarray) -> dict[str, float]:
        """Share of the pixels of each class that occurs, the largest first."""
        counts = np.bincount(ids.ravel(), minlength=len(self.names)) / ids.size
        return {
            self.names[index]: float(counts[index]) for index in np.argsort(-counts, kind="stable") if counts[index]
        }

    def save(
        self,
        folder: str | os.PathLike | OutputFolder,
        key: str,
        image: Image.Image,
        ids: np.ndarray,
        place: str = "",
        overlays: bool = True,
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

        Raises:
            UserError: A file would lie outside of `folder`, or is there already.
        """
        if problem := name_problem(key):
            raise UserError(f"key: {key[:200]!r} {problem}, so that no picture can be named after it.")
        pictures = {"classes": Image.fromarray(ids), "colors": self.paint(ids)}
        if overlays:
            pictures["overlays"] = self.overlay(image, ids)
        written = {}
        for kind, picture in pictures.items():
            name = f"{place}/{kind}/{key}.png".removeprefix("/")
            path = folder.file(name) if isinstance(folder, OutputFolder) else new_file(Path(folder), name)
            # Noise of a camera is not compressed well, however long it is tried.
            picture.save(path, compress_level=1 if kind == "overlays" else 6)
            written[kind] = str(path)
        return written

    def legend(self) -> list[dict[str, object]]:
        """Id, name and colour of every class."""
        colors = self.palette.tolist()
        return [{"id": index, "name": name, "color": colors[index]} for index, name in enumerate(self.names)]


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
