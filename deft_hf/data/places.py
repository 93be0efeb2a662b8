"""A place that nobody labelled: images without masks, which a model is looked at on and never scored."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

import datasets
from PIL import Image

from deft_hf.data.contents import digest
from deft_hf.data.files import files_by_id, read_split
from deft_hf.data.hub import load_split
from deft_hf.data.opening import Stored, open_picture
from deft_hf.data.pictures import ValueRange, check_value_range
from deft_hf.data.shared_work import looked_at
from deft_hf.data.splitting import take_share
from deft_hf.utils.errors import UserError

_FEATURES = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image(decode=False)})


class Place:
    """Unlabelled images of one place.

    Args:
        name (`str`):
            Name of the place in tables and file names.
        dataset (`datasets.Dataset`):
            Dataset with the columns `id` (distinct strings) and `image` (`datasets.Image(decode=False)`).
        value_range (`ValueRange`, *optional*):
            The values that become black and white in images of more than 8 bits, such as (0, 4095).

    Example:

    ```python
    from deft_hf.data.places import Place

    client = Place.from_folder("client")
    image = client.load(0)
    ```
    """

    def __init__(self, name: str, dataset: datasets.Dataset, value_range: ValueRange | None = None) -> None:
        self.name = name
        self.dataset = dataset
        self.value_range = check_value_range(value_range)

    @classmethod
    def from_folder(
        cls,
        root: str | os.PathLike,
        name: str | None = None,
        images: str = "images",
        split: str | float | None = None,
        image_suffix: str = "",
        value_range: ValueRange | None = None,
    ) -> Place:
        """Takes the images of a folder, at any depth; decodes none.

        Args:
            root (`str` or `os.PathLike`):
                The folder of the place.
            name (`str`, *optional*):
                Name of the place; that of `root` by default.
            images (`str`, *optional*, defaults to `"images"`):
                Folder of the images in `root`; where there is no `images`, it is `root` itself.
            split (`str` or `float`, *optional*):
                A key of ROOT/split.json, or a share of the images, as for `Domain.from_folder`; all by default.
            image_suffix (`str`, *optional*, defaults to `""`):
                What the images' names end with; other files are ignored.
            value_range (`ValueRange`, *optional*):
                As for `Place`.

        Raises:
            UserError: A missing or empty folder, two files of one id, or a split that cannot be read.
        """
        root = Path(root)
        found = files_by_id(images_folder(root, images), image_suffix)
        ids = list(found)
        if isinstance(split, str):
            ids = read_split(root / "split.json", split, set(ids))
        elif split is not None:
            ids = take_share(ids, split)
        columns = {"id": ids, "image": [found[key] for key in ids]}
        return cls(name or root.resolve().name, datasets.Dataset.from_dict(columns, features=_FEATURES), value_range)

    @classmethod
    def from_hub(
        cls,
        path: str | os.PathLike,
        split: str,
        name: str | None = None,
        image_column: str = "image",
        config: str | None = None,
        revision: str | None = None,
        value_range: ValueRange | None = None,
    ) -> Place:
        """Takes the images of a split of a data set on the Hub, or of one in a local folder.

        Args:
            path (`str` or `os.PathLike`):
                As for `Domain.from_hub`.
            split (`str`):
                Name of the split, as `load_dataset` takes it.
            name (`str`, *optional*):
                Name of the place; the last part of `path` by default.
            image_column (`str`, *optional*, defaults to `"image"`):
                Column of images.
            config (`str`, *optional*):
                The set's configuration, where it has several.
            revision (`str`, *optional*):
                Branch, tag or commit on the Hub.
            value_range (`ValueRange`, *optional*):
                As for `Place`.

        Raises:
            UserError: The set or its split cannot be loaded, the column is missing or holds no images, or it is empty.
        """
        loaded = load_split(str(path), split, config, revision)
        if image_column not in loaded.column_names:
            columns = ", ".join(loaded.column_names)
            raise UserError(
                f"{path}: has no column {image_column}; its columns are {columns}; name it as image_column"
            )
        if not len(loaded):
            raise UserError(f"{path}: split {split} is empty")
        ids = [str(value) for value in loaded["id"]] if "id" in loaded.column_names else []
        if len(set(ids)) < len(loaded):
            ids = [f"{row:06d}" for row in range(len(loaded))]
        images = loaded.select_columns([image_column])
        if image_column != "image":
            images = images.rename_column(image_column, "image")
        try:
            images = images.cast_column("image", datasets.Image(decode=False))
        except Exception as error:  # datasets and arrow raise what they meet
            raise UserError(f"{path}: column {image_column} holds no images; name the one that does") from error
        return cls(name or Path(path).name, images.add_column("id", ids), value_range)

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def ids(self) -> list[str]:
        """Ids of the images, in order."""
        return self.dataset["id"][:]

    def load(self, index: int) -> Image.Image:
        """The image in RGB, turned as its EXIF orientation says.

        Raises:
            UserError: Names the file that cannot be read.
        """
        row = self.dataset[index]
        return open_picture(row["image"], f"{self.name}/{row['id']} (image)", self.value_range)[0]

    def path(self, index: int) -> str | None:
        """The file of an image; `None` where it is no file of its own."""
        stored: Stored = self.dataset[index]["image"]
        return None if stored is None or stored["bytes"] is not None else str(Path(stored["path"]).resolve())

    @cached_property
    def contents(self) -> list[tuple[str, str, str]]:
        """Id of each image with the digest of it as stored, and nothing for the mask that it has not."""
        return [(row["id"], digest(row["image"]), "") for row in self.dataset]

    def unreadable(self, progress: bool = False, shared: bool = False) -> list[str]:
        """Decodes every image once, in threads, and says of each that cannot be read why.

        Args:
            progress (`bool`, *optional*, defaults to `False`):
                Show a progress bar.
            shared (`bool`, *optional*, defaults to `False`):
                Whether every process of a launcher calls it, and looks at its share of the images.
        """
        found = looked_at(self._problem, len(self), f"checking {self.name}", progress, shared)
        return [problem for problem in found if problem]

    def _problem(self, index: int) -> str | None:
        try:
            self.load(index)
        except UserError as error:
            return str(error)
        return None


def images_folder(root: Path, images: str = "images") -> Path:
    """Where the images of a place lie: in the folder of this name, or in the place's own where there is no `images`.

    Args:
        root (`Path`):
            The folder of the place.
        images (`str`, *optional*, defaults to `"images"`):
            The name of the folder in it.
    """
    return root if images == "images" and not (root / images).is_dir() else root / images
