"""A look at one pair: can it be read, as it is meant, and what does it hold."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from deft_hf.data.contents import digests
from deft_hf.data.labels import LabelSpace
from deft_hf.data.masks import used_colors
from deft_hf.data.opening import MaskReader, open_picture, open_row, unequal
from deft_hf.data.pictures import DROPPED_ALPHA, ValueRange
from deft_hf.data.report import Finding
from deft_hf.utils.errors import UnreadableFile, UserError


def inspected(
    row: dict[str, Any],
    names: tuple[str, str],
    labels: LabelSpace,
    value_range: ValueRange | None,
    reader: MaskReader | None,
) -> Finding:
    """Decodes a pair and says all that is wrong with it.

    Args:
        row (`dict`):
            A row of a domain.
        names (`tuple[str, str]`):
            What messages call its image and its mask where they are no files of their own.
        labels (`LabelSpace`):
            The label space of the masks.
        value_range (`tuple[float, float]` or `None`):
            What is black and what is white in images of more than 8 bits.
        reader (`MaskReader` or `None`):
            The one of the domain.
    """
    finding = Finding(digests(row))
    image = mask = None
    try:
        image, image_name = open_picture(row["image"], names[0], value_range)
        finding.dropped_alpha = int(DROPPED_ALPHA in image.info)
    except UserError as error:
        _note(finding, error)
    try:
        mask, mask_name = open_row(row, names[1], None if image is None else image.size, reader)
    except UserError as error:
        _note(finding, error)
        return finding
    finding.size = mask.size[::-1]
    if mask.mode in ("L", "P"):
        finding.highest = int(np.asarray(mask).max())
    if image is not None and image.size != mask.size:
        finding.unequal.append(unequal(image, image_name, mask, mask_name))
    try:
        train = labels.encode(mask, mask_name)
    except UserError as error:
        finding.outside.append(str(error))
        return finding
    finding.pixels = np.array(Image.fromarray(train).histogram())
    if mask.mode == "P" and labels.colors is None:
        finding.palette = used_colors(mask), mask_name
    return finding


def _note(finding: Finding, error: UserError) -> None:
    (finding.unreadable if isinstance(error, UnreadableFile) else finding.unfit).append(str(error))
