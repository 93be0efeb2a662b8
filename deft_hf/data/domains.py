"""A domain: pairs of an image and a mask from one place, out of a folder, the Hub, or drawn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from deft_hf.data import kept
from deft_hf.data.annotations.rows import rows
from deft_hf.data.checking import findings
from deft_hf.data.columns import FEATURES, as_dataset
from deft_hf.data.contents import digests, in_memory, is_file
from deft_hf.data.files import files_by_id, read_split
from deft_hf.data.hub import load_split
from deft_hf.data.inspection import inspected
from deft_hf.data.labels import LabelSpace
from deft_hf.data.masks import Palettes, used_colors
from deft_hf.data.opening import MaskReader, open_picture, open_row, unequal
from deft_hf.data.pictures import ValueRange, check_value_range
from deft_hf.data.report import DomainReport, Finding, listed
from deft_hf.data.splitting import take_share
from deft_hf.data.streets import LOOKS, STREETS, street_rows
from deft_hf.utils.errors import UserError


class Domain:
    """Labelled images of one place.

    Args:
        name (`str`):
            Name of the domain in tables and metrics.
        labels (`LabelSpace`):
            Label space that its masks are read with.
        dataset (`datasets.Dataset`):
            Dataset with the columns `id` (distinct strings), `image` and `mask` (both `datasets.Image(decode=False)`,
            so that a row costs nothing until `load` decodes it). In place of `mask` it may have `shapes`, the text
            that `deft_hf.data.annotations.shapes.drawn` draws a mask from.
        report (`DomainReport`, *optional*):
            Findings while pairing files.
        value_range (`ValueRange`, *optional*):
            The values that become black and white in images of more than 8 bits, such as (0, 4095); see
            `deft_hf.data.pictures.as_rgb`.
        mask_reader (`MaskReader`, *optional*):
            Reads masks that are no pictures of ids, palettes or colours; see `deft_hf.data.opening`.

    Attributes:
        report (`DomainReport`, *optional*):
            Report of the pairing (pairs and orphans); `check` returns one that covers the contents too.

    Example:

    ```python
    >>> from deft_hf import Domain

    >>> town = Domain.from_streets("clear", count=2, size=(48, 64))
    >>> len(town)
    2
    >>> image, mask = town.load(0)
    >>> image.size, mask.shape
    ((64, 48), (48, 64))

    ```
    """

    def __init__(
        self,
        name: str,
        labels: LabelSpace,
        dataset: datasets.Dataset,
        report: DomainReport | None = None,
        value_range: ValueRange | None = None,
        mask_reader: MaskReader | None = None,
    ) -> None:
        self.name = name
        self.labels = labels
        self.dataset = dataset
        self.report = report or DomainReport(name, labels, pairs=len(dataset))
        self.value_range = check_value_range(value_range)
        self.mask_reader = mask_reader
        self._palettes = Palettes(ids_declared=labels.ids is not None)

    @classmethod
    def from_folder(
        cls,
        root: str | os.PathLike,
        labels: LabelSpace,
        name: str | None = None,
        images: str = "images",
        masks: str = "masks",
        split: str | float | None = None,
        image_suffix: str = "",
        mask_suffix: str = "",
        value_range: ValueRange | None = None,
    ) -> Domain:
        """Pairs the files of two folders by relative path and stem, at any depth; decodes none.

        An image without a mask, or a mask without an image, is left out and named in `report`.

        Args:
            root (`str` or `os.PathLike`):
                The domain's folder.
            labels (`LabelSpace`):
                The label space of the masks.
            name (`str`, *optional*):
                Name of the domain; that of `root` by default.
            images (`str`, *optional*, defaults to `"images"`):
                Folder of the images in `root`.
            masks (`str`, *optional*, defaults to `"masks"`):
                Folder of the masks in `root`.
            split (`str` or `float`, *optional*):
                A key of ROOT/split.json, which maps names of splits to lists of ids; or a share of the pairs: 0.8 the
                first, -0.2 the rest, see `deft_hf.data.splitting.take_share`. All pairs by default.
            image_suffix (`str`, *optional*, defaults to `""`):
                Suffix of the images' stems that is not part of the id (`_leftImg8bit`). Files without it are ignored.
            mask_suffix (`str`, *optional*, defaults to `""`):
                Suffix of the masks' stems (`_gtFine_labelIds`).
            value_range (`ValueRange`, *optional*):
                As for `Domain`.

        Raises:
            UserError: A missing or empty folder, two files of one id, no pair at all, an unknown split, ids in the
                split that are no pairs, or a share that leaves none.
        """
        root = Path(root)
        image_files = files_by_id(root / images, image_suffix)
        mask_files = files_by_id(root / masks, mask_suffix)
        if not image_suffix:  # masks beside their images, or below them
            taken = set(mask_files.values())
            image_files = {key: path for key, path in image_files.items() if path not in taken} or image_files
        ids = [key for key in image_files if key in mask_files]
        if not ids:
            raise UserError(
                f"{root}: no image of {images} has a mask in {masks}; a pair has the same relative path and stem, but "
                f"the first are {next(iter(image_files))!r} and {next(iter(mask_files))!r}. Strip what differs with "
                "image_suffix and mask_suffix"
            )
        name = name or root.resolve().name
        without_mask = [key for key in image_files if key not in mask_files]
        without_image = [key for key in mask_files if key not in image_files]
        if isinstance(split, str):
            ids = read_split(root / "split.json", split, set(ids))
        elif split is not None:
            ids = take_share(ids, split)
        files = [image_files[key] for key in ids], [mask_files[key] for key in ids]
        dataset = as_dataset({"id": ids, "image": files[0], "mask": files[1]})
        report = DomainReport(name, labels, len(ids), without_mask, without_image)
        return cls(name, labels, dataset, report, value_range)

    @classmethod
    def from_annotations(
        cls,
        root: str | os.PathLike,
        labels: LabelSpace | None = None,
        format: str | None = None,
        split: str | float | None = None,
        name: str | None = None,
        value_range: ValueRange | None = None,
    ) -> Domain:
        """Takes the export of an annotation tool as it was unpacked; a mask is drawn whenever it is loaded.

        Classes are matched by name. What no shape covers is `background`.

        Args:
            root (`str` or `os.PathLike`):
                The export's folder.
            labels (`LabelSpace`, *optional*):
                The classes, and in `other_names` what the export calls otherwise or has beside them. By default its
                own classes.
            format (`str`, *optional*):
                One of `deft_hf.data.annotations.FORMATS`; by default the one that the files are recognised by.
            split (`str` or `float`, *optional*):
                A split of the export, or a share as for `from_folder`; all its images by default.
            name (`str`, *optional*):
                Name of the domain; that of `root` by default.
            value_range (`ValueRange`, *optional*):
                As for `Domain`.

        Raises:
            UserError: The export is none or damaged, a class is not among `labels`, or there is no such split.
        """
        root = Path(root)
        read, name = rows(root, labels, format, split), name or root.resolve().name
        orphans = read.without_labels, read.without_image
        report = DomainReport(name, read.labels, len(read.columns["id"]), *orphans, notes=read.notes)
        return cls(name, read.labels, as_dataset(read.columns), report, value_range)

    @classmethod
    def from_hub(
        cls,
        path: str | os.PathLike,
        labels: LabelSpace,
        split: str,
        name: str | None = None,
        image_column: str = "image",
        mask_column: str = "mask",
        config: str | None = None,
        revision: str | None = None,
        value_range: ValueRange | None = None,
    ) -> Domain:
        """Takes a split of a data set on the Hub, or of one in a local folder.

        Ids are the set's `id` column where it has one of distinct values, and row numbers otherwise.

        Args:
            path (`str` or `os.PathLike`):
                `user/name` on the Hub, a folder that `datasets.load_dataset` reads (parquet files, for example), or
                one that `save_to_disk` wrote.
            labels (`LabelSpace`):
                The label space of the masks.
            split (`str`):
                Name of the split, as `load_dataset` takes it.
            name (`str`, *optional*):
                Name of the domain; the last part of `path` by default.
            image_column (`str`, *optional*, defaults to `"image"`):
                Column of images.
            mask_column (`str`, *optional*, defaults to `"mask"`):
                Column of masks, as lossless images.
            config (`str`, *optional*):
                The set's configuration, where it has several.
            revision (`str`, *optional*):
                Branch, tag or commit on the Hub.
            value_range (`ValueRange`, *optional*):
                As for `Domain`.

        Raises:
            UserError: The set or its split cannot be loaded, a column is missing or holds no images, or it is empty.
        """
        loaded = load_split(str(path), split, config, revision)
        if missing := [column for column in (image_column, mask_column) if column not in loaded.column_names]:
            raise UserError(
                f"{path}: has no column {' or '.join(missing)}; its columns are {', '.join(loaded.column_names)}; "
                "name the right ones with image_column and mask_column"
            )
        if not len(loaded):
            raise UserError(f"{path}: split {split} is empty")
        ids = [str(value) for value in loaded["id"]] if "id" in loaded.column_names else []
        if len(set(ids)) < len(loaded):
            ids = [f"{row:06d}" for row in range(len(loaded))]
        pairs = loaded.select_columns([image_column, mask_column])
        pairs = pairs.rename_columns({image_column: "image", mask_column: "mask"})
        for column, given in (("image", image_column), ("mask", mask_column)):
            try:
                pairs = pairs.cast_column(column, FEATURES[column])
            except (TypeError, ValueError, NotImplementedError) as error:
                raise UserError(f"{path}: column {given} holds {loaded.features[given]}, expected images") from error
        return cls(name or Path(path).name, labels, pairs.add_column("id", ids), value_range=value_range)

    @classmethod
    def from_streets(
        cls,
        look: str,
        labels: LabelSpace | None = None,
        *,
        count: int,
        seed: int = 0,
        size: tuple[int, int] = (192, 256),
        name: str | None = None,
    ) -> Domain:
        """Draws a domain of the small street world; image i depends on (look, seed, i, size) alone.

        Args:
            look (`str`):
                One of `deft_hf.data.LOOKS`.
            labels (`LabelSpace`, *optional*):
                Label space; `STREETS` by default, whose ids the masks hold.
            count (`int`):
                Number of images.
            seed (`int`, *optional*, defaults to `0`):
                Not negative.
            size (`tuple[int, int]`, *optional*, defaults to `(192, 256)`):
                (height, width) in pixels.
            name (`str`, *optional*):
                Name of the domain; the look by default.

        Raises:
            UserError: An unknown look, or no image asked for.
        """
        if look not in LOOKS:
            raise UserError(f"streets: found the look {look!r}, expected one of {', '.join(LOOKS)}")
        if count < 1:
            raise UserError(f"streets: found count {count}, expected at least 1")
        return cls(name or look, labels or STREETS, as_dataset(street_rows(look, count, seed, size)))

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def ids(self) -> list[str]:
        """Ids of the pairs, in order."""
        return self.dataset["id"][:]

    @cached_property
    def contents(self) -> list[tuple[str, str, str]]:
        """Id of each pair with digests of its image and its mask as stored; of `check`, or kept, or else read now."""
        before = kept.stamp(self.dataset)
        if (known := kept.read("contents", before)) is not None:
            return [(key, image, mask) for key, image, mask in known]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = list(pool.map(lambda index: digests(self.dataset[index]), range(len(self.dataset))))
        if kept.stamp(self.dataset) == before:
            kept.write("contents", before, found)
        return found

    def load(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Decodes a pair.

        Returns:
            `tuple[Image.Image, np.ndarray]`: The image in RGB, turned as its EXIF orientation says, and its train ids
            as a uint8 array (H, W) of the same size, 255 where ignored. A mask is never turned.

        Raises:
            UserError: Names the file that cannot be read, has another size than its partner, or holds an unknown id.
        """
        row = self.dataset[index]
        image, image_name = open_picture(row["image"], self._cell_name(row, "image"), self.value_range)
        mask, mask_name = self._open_mask(row, image)
        if image.size != mask.size:
            raise UserError(unequal(image, image_name, mask, mask_name))
        return image, self._train_ids(mask, mask_name)

    def _open_mask(self, row: dict[str, Any], image: Image.Image | None) -> tuple[Image.Image, str]:
        size = None if image is None else image.size
        return open_row(row, self._cell_name(row, "mask"), size, self.mask_reader)

    def _train_ids(self, mask: Image.Image, name: str) -> np.ndarray:
        train = self.labels.encode(mask, name)
        if mask.mode == "P" and self.labels.colors is None:
            self._palettes.note(used_colors(mask), name)
        return train

    def select(self, which: Sequence[str] | Sequence[int]) -> Domain:
        """The domain of some of the pairs, in the order given: ids, or positions (a `range`, for example).

        Raises:
            UserError: An id that the domain does not have.
        """
        chosen = self.dataset.select(self._positions(which))
        return Domain(self.name, self.labels, chosen, None, self.value_range, self.mask_reader)

    def _positions(self, which: Sequence[str] | Sequence[int]) -> list[int]:
        positions: list[Any] = list(which)
        if not (positions and isinstance(positions[0], str)):
            return positions
        known = {key: position for position, key in enumerate(self.ids)}
        if missing := [key for key in positions if key not in known]:
            raise UserError(f"{self.name}: has no pair {listed(missing)}; its ids look like {self.ids[0]!r}")
        return [known[key] for key in positions]

    def check(self, progress: bool = False, shared: bool = False, cached: bool = False) -> DomainReport:
        """Decodes every pair once, in threads, and reports all that is wrong rather than the first thing.

        Args:
            progress (`bool`, *optional*, defaults to `False`):
                Whether to show a progress bar.
            shared (`bool`, *optional*, defaults to `False`):
                Whether every process of a launcher calls it, and looks at its share of the pairs.
            cached (`bool`, *optional*, defaults to `False`):
                Whether to take what an earlier check found in pairs where all was well, as long as their files were
                not touched since.
        """
        paired = self.report
        orphans = paired.images_without_mask, paired.masks_without_image
        report = DomainReport(self.name, self.labels, len(self), *orphans, checked=len(self))
        report.left_out, report.notes = paired.left_out, paired.notes
        reader = getattr(self.mask_reader, "__module__", None)
        options = f"checking {self.name}", progress, shared, cached
        for finding in findings(self.dataset, self._inspect, *options, self.labels, self.value_range, reader):
            if finding.palette is not None:
                try:
                    self._palettes.note(*finding.palette)
                except UserError as error:
                    finding.outside.append(str(error))
                    finding.pixels = None
            report.add(finding)
        report.add_what_all_show()
        self.contents = report.contents
        return report

    def _inspect(self, index: int) -> Finding:
        row = in_memory(self.dataset[index])
        names = self._cell_name(row, "image"), self._cell_name(row, "mask")
        return inspected(row, names, self.labels, self.value_range, self.mask_reader)

    def _cell_name(self, row: dict[str, Any], column: str) -> str:
        return row[column]["path"] if column in row and is_file(row[column]) else f"{self.name}/{row['id']} ({column})"
