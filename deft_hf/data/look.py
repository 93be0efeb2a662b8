"""What a picture's file says of itself, read before its pixels are: bands, depth, frames, encoder.

Pillow decodes nearly everything and drops in silence what its modes cannot hold; here is seen what that would be.
"""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass
from typing import IO

from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import COMPRESSION_INFO, ImageFileDirectory_v2, TiffImageFile

from deft_hf.utils.errors import UserError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""The formats that are opened. Whatever a file is called, nothing else is: Pillow hands PostScript to Ghostscript."""

MOST_PIXELS = 2**29
"""Pixels of the largest picture that is decoded: 537 megapixels, 1.6 GB in RGB."""

_NEW_SUBFILE_TYPE, _BITS, _COMPRESSION, _ORIENTATION, _SAMPLES, _SAMPLE_FORMAT = 254, 258, 259, 274, 277, 339
_SIGNED = 2
_REDUCED_OR_MASK = 1 | 4
_LOSSY_IN_TIFF = {"jpeg": "JPEG", "tiff_jpeg": "JPEG", "webp": "WebP"}
_raised_limit = threading.Lock()


@dataclass(frozen=True)
class Look:
    """A picture's file, beside its pixels.

    Args:
        format (`str` or `None`):
            Pillow's name of the file format; `None` for a picture that is no file.
        mode (`str`):
            Pillow's mode, in which the pixels will be.
        rawmode (`str`):
            Pillow's name of how the file holds them, such as `L;4` or `RGB;16B`; the mode once they are decoded.
        maximum (`int` or `None`, *optional*):
            Largest value of a PGM or PPM file.
        bands (`int`, *optional*, defaults to `1`):
            Values a pixel that the file holds, those that Pillow drops too.
        frames (`int`, *optional*, defaults to `1`):
            Pages or frames; smaller copies of the first and transparency masks are not counted.
        lossy (`str` or `None`, *optional*):
            The encoder, where it changes values.
        signed (`bool`, *optional*, defaults to `False`):
            Whether a TIFF file says that its whole numbers have a sign, which Pillow drops of 8 bits.
        turned (`bool`, *optional*, defaults to `False`):
            Whether a TIFF file says that it is to be turned, which Pillow does as it decodes.
    """

    format: str | None
    mode: str
    rawmode: str
    maximum: int | None = None
    bands: int = 1
    frames: int = 1
    lossy: str | None = None
    signed: bool = False
    turned: bool = False

    @classmethod
    def at(cls, picture: Image.Image) -> Look:
        """Looks at an opened picture; before `load`, after which Pillow has forgotten most of it."""
        tiles = getattr(picture, "tile", None)
        details = tiles[0].args if tiles else None
        rawmode, maximum = picture.mode, None
        if isinstance(details, str):
            rawmode = details
        elif isinstance(details, tuple) and details and isinstance(details[0], str):
            rawmode = details[0]
            maximum = details[1] if picture.format == "PPM" else None
        bands, signed, turned = len(picture.getbands()), False, False
        if isinstance(picture, TiffImageFile):
            bands = max(bands, int(picture.tag_v2.get(_SAMPLES, 1)))
            signed = _SIGNED in picture.tag_v2.get(_SAMPLE_FORMAT, ())
            turned = picture.tag_v2.get(_ORIENTATION, 1) != 1
        seen = picture.format, picture.mode, rawmode, maximum, bands, _frames(picture), _lossy(picture)
        return cls(*seen, signed, turned)


def opened(source: str | bytes) -> Image.Image:
    """Opens a file by path, or its bytes, without decoding it.

    Raises:
        UserError: Pillow does not read this kind of TIFF, or the picture is too large to be decoded.
        OSError: The file is missing or no picture of `FORMATS`.
    """
    stream: str | IO[bytes] = source if isinstance(source, str) else io.BytesIO(source)
    try:
        return _open(stream)
    except UnidentifiedImageError as error:
        if layout := _tiff_layout(source):
            raise UserError(f"holds {layout}") from None
        raise OSError(f"no picture of the formats {', '.join(FORMATS)}") from error


def _open(stream: str | IO[bytes]) -> Image.Image:
    try:
        return Image.open(stream, formats=FORMATS)
    except Image.DecompressionBombError:
        # Pillow's limit guards servers against uploads; here the file is the user's own orthophoto.
        with _raised_limit:
            before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MOST_PIXELS
            try:
                picture = Image.open(stream, formats=FORMATS)
            except Image.DecompressionBombError as error:
                raise UserError(_too_large(str(error))) from None
            finally:
                Image.MAX_IMAGE_PIXELS = before
    if picture.width * picture.height > MOST_PIXELS:
        raise UserError(_too_large(f"it has {picture.width} x {picture.height} pixels"))
    return picture


def _too_large(why: str) -> str:
    return f"is too large to be decoded at once ({why}); cut it into tiles of at most {MOST_PIXELS:,} pixels"


def _frames(picture: Image.Image) -> int:
    if picture.format in ("TIFF", "GIF") and not getattr(picture, "tile", None):
        return 1  # decoded, so that it was looked at before; the file may be closed
    frames = getattr(picture, "n_frames", 1)
    if frames == 1 or not isinstance(picture, TiffImageFile):
        return frames
    apart = 0
    for frame in range(1, frames):
        picture.seek(frame)
        apart += not picture.tag_v2.get(_NEW_SUBFILE_TYPE, 0) & _REDUCED_OR_MASK
    picture.seek(0)
    return 1 + apart


def _lossy(picture: Image.Image) -> str | None:
    if picture.format in ("JPEG", "MPO"):
        return "JPEG"
    if picture.format == "TIFF" and (encoder := _LOSSY_IN_TIFF.get(str(picture.info.get("compression")))):
        return f"{encoder} inside a TIFF"
    if picture.format == "WEBP" and _has_lossy_chunk(picture):
        return "lossy WebP"
    return None


def _has_lossy_chunk(picture: Image.Image) -> bool:
    """Whether a WebP file that is still open holds a `VP8 ` chunk; `VP8L` is the lossless one."""
    stream = getattr(picture, "fp", None)
    if stream is None or stream.closed:
        return False
    position = stream.tell()
    try:
        stream.seek(12)
        while len(head := stream.read(8)) == 8:
            if head[:4] == b"VP8 ":
                return True
            size = int.from_bytes(head[4:], "little")
            stream.seek(size + size % 2, io.SEEK_CUR)
        return False
    finally:
        stream.seek(position)


def _tiff_layout(source: str | bytes) -> str | None:
    """What a TIFF file holds that Pillow does not identify, and what it would; `None` of every other file."""
    try:
        with open(source, "rb") if isinstance(source, str) else io.BytesIO(source) as stream:
            directory = ImageFileDirectory_v2(stream.read(8))
            stream.seek(directory.next)
            directory.load(stream)
        bands, bits = directory.get(_SAMPLES, 1), directory.get(_BITS, (1,))
        found = f"{bands} band{'s' if bands > 1 else ''} of {max(bits)} bits"
        if (method := directory.get(_COMPRESSION, 1)) not in COMPRESSION_INFO:
            return f"{found} in a compression that is not read (method {method}); save it by deflate, or without"
        return f"{found}; expected one band (grey), of at most 32 bits, or three (RGB), of 8"
    except Exception:  # no TIFF, or a broken one
        return None
