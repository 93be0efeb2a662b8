"""Label exports of annotation tools, read as they are: nothing is converted on disk.

A format is a row of `FORMATS`: its module has `recognises(folder)`, whether a folder is such an export, and
`read(folder)`, its classes, splits and images with their shapes. A mask is drawn from the shapes when it is loaded,
see `deft_hf.data.annotations.shapes`. What no shape covers is class 0, the background.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deft_hf.data.annotations import coco, cvat, label_studio, labelme, roboflow, supervisely, voc, yolo
from deft_hf.data.annotations.export import Export, Found
from deft_hf.utils.errors import UserError


@dataclass(frozen=True)
class Format:
    """A format of label exports.

    Args:
        recognises (`Callable`):
            Whether a folder is such an export, by the names of files and the beginning of some.
        read (`Callable`):
            Reads all of an export; a mistake in it is a UserError.
    """

    recognises: Callable[[Path], bool]
    read: Callable[[Path], Export]


# In the order in which `detect` asks: the more particular first.
FORMATS: dict[str, Format] = {
    "roboflow": Format(roboflow.recognises, roboflow.read),
    "yolo": Format(yolo.recognises, yolo.read),
    "supervisely": Format(supervisely.recognises, supervisely.read),
    "voc": Format(voc.recognises, voc.read),
    "cvat": Format(cvat.recognises, cvat.read),
    "label_studio": Format(label_studio.recognises, label_studio.read),
    "coco": Format(coco.recognises, coco.read),
    "labelme": Format(labelme.recognises, labelme.read),
}


def detect(folder: Path) -> Found | None:
    """Recognises a label export by its files.

    Args:
        folder (`Path`):
            The folder that an export was unpacked in.

    Returns:
        `Found` or `None`: What the export holds, as read; `None` if the folder is no export of a known format.
    """
    for name, form in FORMATS.items():
        try:
            if not form.recognises(folder):
                continue
            export = form.read(folder)
        except UserError as error:
            return Found(name, [], [], 0, [str(error)])
        images = sum(item.labelled and item.image is not None for item in export.items)
        return Found(name, export.names, export.splits, images, export.problems)
    return None


def read(folder: Path, form: str) -> Export:
    """Reads an export.

    Args:
        folder (`Path`):
            The folder that it was unpacked in.
        form (`str`):
            A key of `FORMATS`.

    Raises:
        UserError: There is no such folder, or it is no such export, or a damaged one.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected an export of {form}")
    return FORMATS[form].read(folder)
