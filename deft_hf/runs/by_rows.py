"""Segments a picture of hundreds of megapixels by rows of windows, and writes what comes of it row by row."""

from __future__ import annotations

import os
from contextlib import ExitStack

import numpy as np
from PIL import Image

from deft_hf.data.png_rows import PngRows, PngWriter
from deft_hf.runs.segmenter import COMPRESS_LEVEL, Segmenter
from deft_hf.utils.outputs import OutputFolder


def save_by_rows(
    segmenter: Segmenter, folder: OutputFolder, key: str, image: Image.Image | PngRows, overlays: bool = True
) -> tuple[dict[str, str], dict[str, float]]:
    """Writes what [`Segmenter.save`] writes, without ever holding it; gives the paths by kind, and the shares.

    No file has its name before it is complete.

    Args:
        segmenter (`Segmenter`):
            The model.
        folder (`OutputFolder`):
            The folder to write to.
        key (`str`):
            Id of the image: a plain relative path.
        image (`Image.Image` or `PngRows`):
            The image, which the segmenter slides over.
        overlays (`bool`, *optional*, defaults to `True`):
            Whether to write the overlay too.

    Raises:
        UserError: The model takes no windows of this size, or the rest of the picture cannot be read.
    """
    kinds = ["classes", "colors", *["overlays"] * overlays]
    counts = np.zeros(len(segmenter.names), np.int64)
    with folder.scratch() as place:
        with ExitStack() as files:
            to = {
                kind: files.enter_context(PngWriter(place / f"{kind}.png", image.height, COMPRESS_LEVEL[kind]))
                for kind in kinds
            }
            top = 0
            for ids in segmenter.rows(image):
                counts += segmenter.counts(ids)
                to["classes"].write(ids)
                to["colors"].write(segmenter.palette[ids])
                if overlays:
                    rows = image.crop((0, top, image.width, top + len(ids)))
                    segmenter.draw(rows, ids, 0.5)
                    to["overlays"].write(np.asarray(rows), image.info.get("icc_profile"))
                top += len(ids)
        written = {kind: folder.file(f"{kind}/{key}.png") for kind in kinds}
        for kind, path in written.items():
            os.replace(place / f"{kind}.png", path)
    return {kind: str(path) for kind, path in written.items()}, segmenter.shares_of(counts)
