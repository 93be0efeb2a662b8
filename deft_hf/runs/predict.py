"""Segments pictures with any model."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from deft_hf.data.files import IMAGE_SUFFIXES, check_name, files_by_id
from deft_hf.data.look import opened
from deft_hf.data.opening import open_picture
from deft_hf.data.pictures import ValueRange, check_value_range
from deft_hf.data.png_rows import PngRows
from deft_hf.data.servers import check_names, id_table, server_of, write_archive
from deft_hf.runs.batches import segmented
from deft_hf.runs.by_rows import save_by_rows
from deft_hf.runs.segmenter import Segmenter, Size
from deft_hf.scoring.report import save_json
from deft_hf.scoring.test_time import Views
from deft_hf.utils.ahead import done_ahead
from deft_hf.utils.errors import UnreadableFile, UserError
from deft_hf.utils.integrity import writing
from deft_hf.utils.outputs import claim_output
from deft_hf.utils.places import refuse_overlap
from deft_hf.utils.result import Result

if TYPE_CHECKING:
    from pandas import DataFrame

PREDICTIONS = "predictions.json"
_MOST_SHOWN = 4
_READERS = min(4, os.cpu_count() or 1)
_WRITTEN_BEHIND = 2
_BATCH = 8
# Of all pictures that wait for the model; a larger one is read when the model is idle and written at once, by rows
# where a window slides over it.
_MOST_PIXELS = 1 << 25


@dataclass(frozen=True)
class Predictions(Result):
    """What a model found in some pictures.

    Attributes:
        model (`str`):
            Hub name or folder of the model.
        revision (`str` or `None`):
            Branch, tag or commit on the Hub.
        classes (`list[dict[str, Any]]`):
            `id`, `name` and `color` of every class.
        images (`list[dict[str, Any]]`):
            By picture: its path (`image`), `height`, `width`, the share of its pixels by class name (`shares`, the
            largest first), and the PNG files written (`classes`, `colors`, `overlays`).
        unreadable (`list[str]`):
            What is wrong with each picture that was left out.
        folder (`Path`):
            The folder that was written.
        archive (`str`, *optional*):
            The zip for a benchmark's server, in that folder.
    """

    model: str
    revision: str | None
    classes: list[dict[str, Any]]
    images: list[dict[str, Any]]
    unreadable: list[str]
    folder: Path
    archive: str | None = None

    def to_pandas(self) -> DataFrame:
        """A row for each picture: its sides in pixels, and the share of its pixels by class as `share NAME`."""
        import pandas

        names = [one["name"] for one in self.classes]
        rows = {
            one["image"]: {
                "height": one["height"],
                "width": one["width"],
                **{f"share {name}": one["shares"].get(name, 0.0) for name in names},
            }
            for one in self.images
        }
        return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("image")

    def pictures(self) -> list[Path]:
        return [self.folder / one.get("overlays", one["colors"]) for one in self.images[:_MOST_SHOWN]]

    def to_dict(self) -> dict[str, Any]:
        """What `predictions.json` holds."""
        return {"model": self.model, "revision": self.revision, "classes": self.classes, "images": self.images}


def predict(
    model: str | os.PathLike,
    images: Sequence[str | os.PathLike] | str | os.PathLike,
    out: str | os.PathLike,
    *,
    revision: str | None = None,
    device: str | None = None,
    size: Size | Literal["own"] | None = None,
    window: Size | None = None,
    stride: Size | None = None,
    test_scales: Sequence[float] | None = None,
    test_flip: bool = False,
    value_range: ValueRange | None = None,
    server: str | None = None,
    overlays: bool = True,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Predictions:
    """Segments pictures and writes class ids, colours and overlays as PNG, and `predictions.json`.

    To keep the classes in memory instead, use [`Segmenter.open`] and [`Segmenter.classes`].

    Args:
        model (`str` or `os.PathLike`):
            Hub name, final folder, export or checkpoint of any segmentation model.
        images (`Sequence[str | os.PathLike]`, `str` or `os.PathLike`):
            Pictures, and folders of them.
        out (`str` or `os.PathLike`):
            Folder to write to: `classes/`, `colors/`, `overlays/`, `predictions.json`. It must be new or empty.
        revision (`str`, *optional*, defaults to `main`):
            Branch, tag or commit on the Hub.
        device (`str`, *optional*):
            Such as `cpu` or `cuda:1`; by default an accelerator where there is one.
        size (`tuple[int, int]` or `"own"`, *optional*):
            (height, width) that images are resized to; `"own"` leaves them at their own size. By default the processor
            decides.
        window (`tuple[int, int]`, *optional*):
            (height, width) of a sliding window.
        stride (`tuple[int, int]`, *optional*):
            Step of the window, down and across; by default two thirds of it.
        test_scales (`Sequence[float]`, *optional*):
            Scales at which each picture is seen; the probabilities are averaged. By default it is seen as it is.
        test_flip (`bool`, *optional*, defaults to `False`):
            Whether each picture is seen mirrored too.
        value_range (`tuple[float, float]`, *optional*):
            What is black and what is white in images of more than 8 bits; by default what the model was trained with.
        server (`str`, *optional*):
            `cityscapes`, `acdc` or `wilddash`: write `SERVER.zip` too, with the ids and the file names that the server
            of this benchmark takes, see [`~deft_hf.data.servers`].
        overlays (`bool`, *optional*, defaults to `True`):
            Write overlays too, which take longer than the rest of what is written.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Run Python code of the model's repository; without it, none is ever run.
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace what an earlier prediction wrote to `out`; never anything else.
        progress (`bool`, *optional*, defaults to `True`):
            Show a progress bar on a terminal.

    Returns:
        `Predictions`: what was found where. Pictures that cannot be read are left out and listed in `unreadable`.

    Raises:
        UserError: A path is no picture, two pictures have the same name, `out` lies among the pictures, holds
            something else or cannot be written to, the model cannot be opened or takes no images at `test_scales`, or
            `server` does not know the name of a picture or of a class.

    Example:

    ```python
    from deft_hf import predict

    found = predict("outputs/quickstart", ["drive/", "street.jpg"], "predicted")
    print(found.images[0]["shares"])
    ```
    """
    model = os.fspath(model)
    given = [images] if isinstance(images, str | os.PathLike) else images
    refuse_overlap(out, [Path(path).expanduser() for path in given])
    pictures = _pictures(given)
    benchmark = None if server is None else server_of(server)
    if benchmark is not None:
        check_names(benchmark, pictures)
    views = Views((1.0,) if test_scales is None else tuple(test_scales), test_flip)
    listed: dict[str, dict[str, Any]] = {}
    by_key: dict[str, str] = {}
    unreadable: list[str] = []
    with claim_output(out, "predict", overwrite) as folder:
        segmenter = Segmenter.open(model, revision, device, size, window, stride, trust_remote_code, views)
        value_range = check_value_range(value_range or segmenter.value_range)
        if benchmark is not None:
            id_table(benchmark, segmenter.names)  # refuses before the first picture is segmented

        def write(key: str, path: str, image: Image.Image, ids: np.ndarray) -> dict[str, Any]:
            facts = {"image": path, "height": image.height, "width": image.width, "shares": segmenter.shares(ids)}
            with writing(folder.path, lambda: "The files written so far are complete; make room and start again."):
                written = segmenter.save(folder, key, image, ids, overlays=overlays, in_place=True)
            by_key[key] = written["classes"]
            return facts | written

        def write_by_rows(key: str, path: str, image: Image.Image | PngRows) -> dict[str, Any]:
            with writing(folder.path, lambda: "The files written so far are complete; make room and start again."):
                written, shares = save_by_rows(segmenter, folder, key, image, overlays)
            by_key[key] = written["classes"]
            return {"image": path, "height": image.height, "width": image.width, "shares": shares} | written

        behind: deque[tuple[str, Future[dict[str, Any]]]] = deque()

        def settle(most: int) -> None:
            while len(behind) > most:
                key, future = behind.popleft()
                listed[key] = future.result()

        def small() -> Iterator[tuple[tuple[str, str], Image.Image, Tensor | None]]:
            for key, path in tqdm(pictures.items(), unit="image", disable=None if progress else True):
                prepared = next(ahead)
                if isinstance(prepared, str):
                    unreadable.append(prepared)
                    continue
                image, pixels = prepared
                large = image.width * image.height > _MOST_PIXELS
                if isinstance(image, PngRows) or (large and segmenter.slides_over(image)):
                    settle(0)
                    try:
                        listed[key] = write_by_rows(key, path, image)
                    except UnreadableFile as error:
                        unreadable.append(str(error))
                else:
                    yield (key, path), image, pixels
                del image, pixels, prepared  # they may be large, and the next ones come first

        # Small pictures are read ahead of the model, and written behind it.
        read = partial(_read, segmenter, value_range)
        ahead = done_ahead(read, pictures.values(), _pixels_of, _READERS, _MOST_PIXELS)
        with ThreadPoolExecutor(1) as writer, closing(ahead):
            for (key, path), image, ids, _ in segmented(segmenter, small(), _BATCH):
                behind.append((key, writer.submit(write, key, path, image, ids)))
                settle(0 if image.width * image.height > _MOST_PIXELS else _WRITTEN_BEHIND)
                del image, ids
            settle(0)
        archive = None
        if benchmark is not None:
            archive = f"{server}.zip"
            with writing(folder.path, lambda: "The files written so far are complete; make room and start again."):
                write_archive(folder.file(archive), benchmark, segmenter.names, by_key)
        in_order = [listed[key] for key in pictures if key in listed]
        found = Predictions(model, revision, segmenter.legend(), in_order, unreadable, folder.path, archive)
        save_json(folder.file(PREDICTIONS), found.to_dict())
    return found


def _read(
    segmenter: Segmenter, value_range: ValueRange | None, path: str
) -> tuple[Image.Image | PngRows, Tensor | None] | str:
    """A picture, and what the model sees of it where no window slides over it; or why it cannot be read."""
    rows = PngRows.open(path) if _pixels_of(path) > _MOST_PIXELS else None
    if rows is not None and segmenter.slides_over(rows):
        return rows, None
    try:
        image, _ = open_picture({"bytes": None, "path": path}, path, value_range)
    except UserError as error:
        return str(error)
    return image, None if segmenter.slides_over(image) else segmenter.pixels(image)


def _pixels_of(path: str) -> int:
    """How large a picture is; 0 of what is none, as whoever reads it will say."""
    try:
        with opened(path) if os.path.isfile(path) else Image.new("L", (0, 0)) as picture:
            return picture.width * picture.height
    except Exception:  # Pillow raises whatever a broken file makes it stumble over
        return 0


def _pictures(inputs: Sequence[str | os.PathLike]) -> dict[str, str]:
    """By the name that its results will have, the path of each picture."""
    found: dict[str, str] = {}
    for given in inputs:
        path = Path(given).expanduser()
        if path.is_dir():
            new = files_by_id(path, "")
        elif path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
            check_name(path)
            new = {path.stem: str(path)}
        else:
            raise UserError(
                f"{given}: found no folder and no picture; expected a file that ends in {', '.join(IMAGE_SUFFIXES)}"
            )
        for key, file in new.items():
            if key in found:
                raise UserError(f"{found[key]} and {file} have the same name {key}: segment them into two folders")
            found[key] = file
    return found
