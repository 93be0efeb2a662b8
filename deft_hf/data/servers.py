"""What benchmark servers take: their ids, file names and archives.

Cityscapes (https://www.cityscapes-dataset.com/submit/) takes label ids, found by the names of the images wherever they
are in the archive. ACDC (https://acdc.vision.ee.ethz.ch/submit) takes train ids in a folder `labelTrainIds`. WildDash
(https://wilddash.cc/submit) takes the ids of its label policy; of several that a model calls one class, the first. All
take predictions of the size of the images.

Cityscapes' rules are those of its own scripts. ACDC's are known from users of its server alone, such as VBLC
(https://github.com/BIT-DA/VBLC). What WildDash calls its files was found nowhere: here they are called as the images,
unverified.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from PIL import Image

from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.data.labels import REST
from deft_hf.data.layouts import LABELS
from deft_hf.data.spaces import CITYSCAPES
from deft_hf.utils.errors import UserError

_COARSER = "street7"  # one of its classes is several of the server's


@dataclass(frozen=True)
class Server:
    """A benchmark server.

    Args:
        title (`str`):
            Name of the benchmark.
        names (`str`):
            What its images are called, without the suffix of the file: a regular expression.
        suffix (`str`):
            What such a name ends in; added where a data set's layout has taken it off.
        held (`str`, *optional*):
            Whose ids it takes, a key of `deft_hf.data.layouts.LABELS`; train ids by default.
        folder (`str`, *optional*, defaults to `""`):
            Folder in the archive.
    """

    title: str
    names: str
    suffix: str = ""
    held: str | None = None
    folder: str = ""

    def ids(self) -> dict[str, int]:
        """What it calls a class, by the name of the class."""
        if self.held is None:
            return CITYSCAPES.label2id
        found: dict[str, int] = {}
        for space in (space for name, space in LABELS[self.held].items() if name != _COARSER):
            # The first id of a class is its own; the others are what else counts as it.
            for raw, train in sorted((raw, train) for raw, train in (space.ids or {}).items() if raw != REST):
                if train != IGNORE_INDEX:
                    found.setdefault(space.names[train], raw)
        return found

    def file_name(self, key: str) -> str | None:
        """What the prediction for an image is called in the archive; `None` for no image of this benchmark.

        Args:
            key (`str`):
                Id or path of the image, without the suffix of the file.
        """
        name = PurePosixPath(key).name
        name = name if name.endswith(self.suffix) else name + self.suffix
        return str(PurePosixPath(self.folder, f"{name}.png")) if re.fullmatch(self.names, name) else None


SERVERS = {
    "cityscapes": Server("Cityscapes", r"[A-Za-z-]+_\d{6}_\d{6}_leftImg8bit", "_leftImg8bit", "cityscapes"),
    "acdc": Server("ACDC", r"G\w+_frame_\d{6}_rgb_anon", "_rgb_anon", folder="labelTrainIds"),
    "wilddash": Server("WildDash 2", r"[A-Za-z]+\d*_\d+", "", "wilddash2"),
}


def server_of(name: str) -> Server:
    """The server of a name.

    Raises:
        UserError: There is none.
    """
    if name not in SERVERS:
        raise UserError(f"server: found {name}, expected one of {', '.join(SERVERS)}")
    return SERVERS[name]


def id_table(server: Server, classes: Sequence[str]) -> np.ndarray:
    """The server's id of each class of a model, uint8 (classes,).

    Raises:
        UserError: The server does not know one of the classes.
    """
    known = server.ids()
    if unknown := [name for name in classes if name not in known]:
        raise UserError(
            f"the model has the class {unknown[0]}, which {server.title}'s server does not know; expected some of "
            f"{', '.join(known)}"
        )
    return np.array([known[name] for name in classes], np.uint8)


def write_archive(
    path: Path, server: Server, classes: Sequence[str], predictions: Mapping[str, str | os.PathLike]
) -> None:
    """Write predictions into a zip as a server wants it.

    Args:
        path (`Path`):
            The zip file.
        server (`Server`):
            The server.
        classes (`Sequence[str]`):
            Names of the model's classes, by id.
        predictions (`Mapping[str, str | os.PathLike]`):
            By id of an image, the PNG file with the class ids of its pixels, of the image's own size.

    Raises:
        UserError: As [`id_table`] and [`check_names`].
    """
    table = id_table(server, classes)
    check_names(server, predictions)
    with ZipFile(path, "w", ZIP_STORED) as archive:  # PNGs are compressed already
        for key, file in predictions.items():
            content, name = io.BytesIO(), server.file_name(key)
            with Image.open(file) as picture:
                Image.fromarray(table[np.asarray(picture)]).save(content, "PNG")
            assert name is not None
            archive.writestr(ZipInfo(name), content.getvalue())  # without a date: the same predictions, the same file


def check_names(server: Server, keys: Iterable[str]) -> None:
    """Check that all images are of a benchmark, and none is there twice.

    Raises:
        UserError: One is not, or two have one name.
    """
    taken: dict[str, str] = {}
    for key in keys:
        name = server.file_name(key)
        if name is None:
            raise UserError(
                f"{key}: is not called as the images of {server.title} are ({server.names}), by which its server "
                "finds the predictions; give it its own name again, or write none for a server"
            )
        if name in taken:
            raise UserError(f"{taken[name]} and {key} would both be {name} on {server.title}'s server; leave one out")
        taken[name] = key
