"""The images of a run with what every method predicts, drawn when they are asked for."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.data.domains import Domain
from deft_hf.data.opening import open_picture
from deft_hf.data.places import Place
from deft_hf.recipe import Recipe
from deft_hf.runs.data import load_domains
from deft_hf.runs.evaluate import recipe_segmenter
from deft_hf.runs.facts import read_facts
from deft_hf.runs.folder import method_folders
from deft_hf.runs.segmenter import Segmenter
from deft_hf.scoring.report import image_caption
from deft_hf.utils.errors import UserError
from deft_hf.utils.files import METRICS, RECIPE

OWN = "your pictures"
MOST_RANKED = 100
Show = Literal["classes", "overlay", "errors"]
_KEPT = 256  # predictions, as ids
_LONGEST = 1600  # side of what is sent, in pixels
_WRONG, _RIGHT, _UNKNOWN = (213, 94, 0), (225, 232, 238), (60, 60, 60)


@dataclass(frozen=True)
class Shelf:
    """Images of one kind: a domain with labels, a place without, or pictures that were dropped in.

    Attributes:
        name (`str`):
            What the page calls it.
        role (`str`):
            `validation`, `unseen`, `without labels` or `dropped in`.
        images (`Domain`, `Place` or `list[Image.Image]`):
            The images.
    """

    name: str
    role: str
    images: Domain | Place | list[Image.Image]

    def load(self, index: int) -> tuple[Image.Image, np.ndarray | None]:
        """An image and, where there are labels, its train ids (H, W)."""
        if isinstance(self.images, Domain):
            return self.images.load(index)
        return (self.images[index] if isinstance(self.images, list) else self.images.load(index)), None

    def label(self, index: int) -> str:
        """What the page calls an image."""
        return f"picture {index + 1}" if isinstance(self.images, list) else self.images.ids[index]


class Gallery:
    """A finished run, opened to be looked at.

    Args:
        run (`str` or `Path`):
            The output folder of a training run.
        device (`str`, *optional*):
            Such as `cpu` or `cuda:1`; by default an accelerator where there is one.

    Raises:
        UserError: The folder holds no finished run, or its data cannot be found.
    """

    def __init__(self, run: str | Path, device: str | None = None) -> None:
        folder = Path(run).expanduser()
        if not (folder / RECIPE).is_file():
            raise UserError(f"{folder}: found no {RECIPE}, expected the output folder of a training run")
        recipe = Recipe.load(folder / RECIPE)
        recipe.data.check = False
        self.name = folder.resolve().name
        self.folders = {
            method: place
            for method, place in method_folders(folder, recipe.method).items()
            if (place / METRICS).is_file()
        }
        if not self.folders:
            raise UserError(f"{folder}: found no finished method, expected {METRICS}; let the training end first")
        self.facts = read_facts(self.folders)
        self.labels = recipe.data.label_space()
        domains = load_domains(recipe.data)
        self.own: list[Image.Image] = []
        shelves = [
            *(Shelf(domain.name, "validation", domain) for domain in domains.validation),
            *(Shelf(domain.name, "unseen", domain) for domain in domains.unseen),
            *(Shelf(place.name, "without labels", place) for place in domains.places),
            Shelf(OWN, "dropped in", self.own),
        ]
        self.shelves = {shelf.name: shelf for shelf in shelves}
        self._recipe, self._device = recipe, device
        self._models: dict[str, Segmenter] = {}
        self._predicted: OrderedDict[tuple[str, str, int], np.ndarray] = OrderedDict()
        self._lock = threading.RLock()

    def contents(self) -> dict[str, Any]:
        """What the page lists: methods with their scores, shelves, classes and colours."""
        return {
            "name": self.name,
            "methods": list(self.folders),
            "scores": {
                method: {domain: scores["mean_iou"] for domain, scores in facts.scores.items()}
                for method, facts in self.facts.items()
            },
            "shelves": [
                {"name": shelf.name, "role": shelf.role, "images": len(shelf.images)}
                for shelf in self.shelves.values()
            ],
            "classes": [
                {"name": name, "color": list(color)}
                for name, color in zip(self.labels.names, self.labels.palette, strict=True)
            ],
            "most_ranked": MOST_RANKED,
        }

    def describe(self, shelf: str, index: int) -> dict[str, Any]:
        """Of one image, its id, how well each method does, and on which share of its pixels they differ."""
        found = self._shelf(shelf)
        image, truth = found.load(index)
        predicted = {method: self._predict(method, shelf, index, image) for method in self.folders}
        captions = {
            method: "" if truth is None else image_caption(ids, truth, self.labels)
            for method, ids in predicted.items()
        }
        return {
            "id": found.label(index),
            "labelled": truth is not None,
            "captions": captions,
            "disagreement": float(_differing(list(predicted.values())).mean()),
        }

    def picture(self, shelf: str, index: int, what: str, show: Show = "classes") -> bytes:
        """A PNG: the `image`, its `truth`, the `disagreement` of the methods, or what the method of a name predicts.

        Args:
            shelf (`str`):
                Name of the shelf.
            index (`int`):
                Position of the image.
            what (`str`):
                `image`, `truth`, `disagreement`, or the name of a method behind `method:`.
            show (`str`, *optional*, defaults to `"classes"`):
                `classes`, `overlay` over the image, or `errors` against the truth.

        Raises:
            UserError: There is no such thing.
        """
        image, truth = self._shelf(shelf).load(index)
        if what == "image":
            return _png(image)
        if what == "disagreement":
            differing = _differing([self._predict(method, shelf, index, image) for method in self.folders])
            return _png(Image.fromarray(np.where(differing[..., None], _WRONG, _RIGHT).astype(np.uint8)))
        if what == "truth":
            if truth is None:
                raise UserError(f"{shelf}: has no labels")
            return _png(self._paint(truth, image, show))
        method = what.removeprefix("method:")
        if method not in self.folders:
            raise UserError(f"method: found {method!r}, expected one of {', '.join(self.folders)}")
        ids = self._predict(method, shelf, index, image)
        if show == "errors" and truth is not None:
            colors = np.where((ids == truth)[..., None], _RIGHT, _WRONG)
            colors = np.where((truth == IGNORE_INDEX)[..., None], _UNKNOWN, colors)
            return _png(Image.fromarray(colors.astype(np.uint8)))
        return _png(self._paint(ids, image, show))

    def ranked(self, shelf: str) -> list[int]:
        """Positions of at most `MOST_RANKED` images, evenly spaced, those first on which the methods differ most."""
        found = self._shelf(shelf)
        count = len(found.images)
        chosen = range(count) if count <= MOST_RANKED else [step * count // MOST_RANKED for step in range(MOST_RANKED)]
        scores = {}
        for index in chosen:
            image, _ = found.load(index)
            ids = [self._predict(method, shelf, index, image) for method in self.folders]
            scores[index] = float(_differing(ids).mean())
        return sorted(scores, key=lambda index: (-scores[index], index))

    def add(self, content: bytes) -> int:
        """Takes a picture of the user's own; returns its position among `OWN`.

        Raises:
            UserError: It cannot be read.
        """
        image, _ = open_picture({"bytes": content, "path": None}, "your picture", self._recipe.data.value_range)
        with self._lock:
            self.own.append(image)
            return len(self.own) - 1

    def _shelf(self, name: str) -> Shelf:
        if name not in self.shelves:
            raise UserError(f"domain: found {name!r}, expected one of {', '.join(self.shelves)}")
        return self.shelves[name]

    def _predict(self, method: str, shelf: str, index: int, image: Image.Image) -> np.ndarray:
        key = (method, shelf, index)
        with self._lock:  # one at a time: a model is no place for two requests
            if key not in self._predicted:
                if method not in self._models:
                    folder, trust = self.folders[method], self._recipe.model.trust_remote_code
                    self._models[method] = recipe_segmenter(str(folder), self._recipe, None, self._device, trust)
                self._predicted[key] = self._models[method].at(shelf).classes(image)
                while len(self._predicted) > _KEPT:
                    self._predicted.popitem(last=False)
            self._predicted.move_to_end(key)
            return self._predicted[key]

    def _paint(self, ids: np.ndarray, image: Image.Image, show: Show) -> Image.Image:
        painted = Image.fromarray(self.labels.colorize(ids))
        return Image.blend(image.convert("RGB"), painted, 0.5) if show == "overlay" else painted


def _differing(predicted: list[np.ndarray]) -> np.ndarray:
    """Where the methods do not all agree: bool (H, W)."""
    return np.any([ids != predicted[0] for ids in predicted], axis=0)


def _png(picture: Image.Image) -> bytes:
    if max(picture.size) > _LONGEST:
        picture = picture.copy()
        picture.thumbnail((_LONGEST, _LONGEST), Image.Resampling.NEAREST)
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=1)
    return stream.getvalue()
