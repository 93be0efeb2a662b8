"""PNG files that are read and written a few rows at a time, as pictures of hundreds of megapixels must be.

Pillow decodes and encodes whole files alone. A few rows, with the one above them that filters refer to, are a PNG file
too: Pillow filters those, and here stands how such files are taken from a large one and put together to one.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from deft_hf.data.look import opened
from deft_hf.utils.errors import UnreadableFile

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLORS = {"L": 1, "RGB": 3}
_ORIENTATION = 274
_AT_ONCE = 64  # rows
_PIECE = 1 << 16  # bytes


class PngRows:
    """Cuts of a PNG file from its top to its bottom: rows are decoded once they are asked for, and then let go of.

    Build it with [`PngRows.open`].

    Attributes:
        width (`int`):
            Width of the picture.
        height (`int`):
            Height of the picture.
        info (`dict[str, Any]`):
            What Pillow knows of the file.
    """

    def __init__(self, name: str, picture: Image.Image) -> None:
        self.width, self.height = picture.size
        self.info: dict[str, Any] = {"icc_profile": profile} if (profile := picture.info.get("icc_profile")) else {}
        self._name, self._mode = name, picture.mode
        self._top = 0
        self._held = np.zeros((0, *self._empty(1).shape[1:]), np.uint8)
        self._above = self._empty(1)
        self._file = open(name, "rb")  # noqa: SIM115 (until `close`)
        self._pieces = _pixels_in(self._file)
        self._inflate = zlib.decompressobj()

    @classmethod
    def open(cls, path: str) -> PngRows | None:
        """Opens a file; `None` of one that is read as a whole: other formats, transparent, interlaced, turned."""
        try:
            with opened(path) as picture:
                tiles: Any = getattr(picture, "tile", [])
                plain = (
                    picture.format == "PNG"
                    and getattr(picture, "n_frames", 1) == len(tiles) == 1
                    and picture.mode in _COLORS
                    and tiles[0].args == picture.mode
                    and not picture.info.get("interlace")
                    and "transparency" not in picture.info
                    and _ends_in_pixels(path)
                    and Image.Image.getexif(picture).get(_ORIENTATION, 1) == 1  # that of PNG decodes
                )
                return cls(path, picture) if plain else None
        except Exception:  # whoever reads it as a whole says what is wrong
            return None

    def crop(self, box: tuple[int, int, int, int]) -> Image.Image:
        """A cut in RGB, as `Image.crop` of the whole picture gives it.

        Args:
            box (`tuple[int, int, int, int]`):
                left, top, right, bottom; no row is above the top of the cut before.

        Raises:
            UnreadableFile: The rest of the file cannot be decoded.
        """
        left, top, right, bottom = box
        known = self._top + len(self._held)
        for row in range(known, top, _AT_ONCE):  # that no cut shows
            self._decoded(min(_AT_ONCE, top - row))
        known = max(known, top)
        new = [self._decoded(min(_AT_ONCE, bottom - row)) for row in range(known, bottom, _AT_ONCE)]
        if new or top > self._top:
            self._held = np.concatenate([self._held[top - self._top :], *new])
            self._top = top
        return Image.fromarray(self._held[: bottom - top, left:right]).convert("RGB")

    def close(self) -> None:
        self._file.close()

    def _empty(self, rows: int) -> np.ndarray:
        return np.zeros((rows, self.width, 3)[: 2 + (self._mode == "RGB")], np.uint8)

    def _decoded(self, rows: int) -> np.ndarray:
        """The next rows."""
        try:
            filtered = self._inflated(rows * (1 + self._above.nbytes))
            header = _header(self.width, 1 + rows, b"\x08" + (b"\x02" if self._mode == "RGB" else b"\x00") + bytes(3))
            content = zlib.compress(b"\x00" + self._above.tobytes() + filtered, 0)
            file = _SIGNATURE + header + _chunk(b"IDAT", content) + _chunk(b"IEND", b"")
            found = np.asarray(opened(file))
        except Exception as error:  # as of a file that is decoded as a whole
            raise UnreadableFile(
                f"{self._name}: cannot be read ({error}); replace the file or leave the pair out"
            ) from error
        self._above = found[-1:]
        return found[1:]

    def _inflated(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            piece = self._inflate.unconsumed_tail or next(self._pieces, b"")
            more = self._inflate.decompress(piece, size - len(found))
            if not (piece or more):
                raise OSError("image file is truncated")
            found += more
        return bytes(found)


class PngWriter:
    """Writes a PNG file whose rows come one after another, as Pillow writes it of the whole picture.

    Args:
        path (`Path`):
            The file to write.
        height (`int`):
            Rows of the picture.
        compress_level (`int`):
            Of zlib, 0 to 9.
    """

    def __init__(self, path: Path, height: int, compress_level: int) -> None:
        self.height = height
        self._file = open(path, "wb")  # noqa: SIM115 (until `close`)
        # As Pillow does it.
        self._deflate = zlib.compressobj(compress_level, zlib.DEFLATED, 15, 9, zlib.Z_FILTERED)
        self._above: np.ndarray | None = None

    def write(self, rows: np.ndarray, icc_profile: bytes | None = None) -> None:
        """Adds rows.

        Args:
            rows (`np.ndarray`):
                uint8 (rows, W) or (rows, W, 3), or uint16 (rows, W).
            icc_profile (`bytes`, *optional*):
                The colour profile, given with the first rows.
        """
        for start in range(0, len(rows), _AT_ONCE):
            self._write(rows[start : start + _AT_ONCE], icc_profile)

    def close(self) -> None:
        """Ends the file."""
        with self._file as file:
            file.write(_chunk(b"IDAT", self._deflate.flush()))
            file.write(_chunk(b"IEND", b""))

    def __enter__(self) -> PngWriter:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._file.close() if kind else self.close()

    def _write(self, rows: np.ndarray, icc_profile: bytes | None) -> None:
        whole = rows if self._above is None else np.concatenate([self._above, rows])
        stream = io.BytesIO()
        Image.fromarray(whole).save(stream, "PNG", compress_level=0, icc_profile=icc_profile)
        content = bytearray()
        stream.seek(0)
        for kind, size in _chunks(stream):
            data = stream.read(size)
            if kind == b"IDAT":
                content += data
            elif self._above is None and kind == b"IHDR":
                self._file.write(_SIGNATURE + _header(rows.shape[1], self.height, data[8:]))
            elif self._above is None and kind != b"IEND":
                self._file.write(_chunk(kind, data))
        filtered = zlib.decompress(content)
        first = 0 if self._above is None else len(filtered) // len(whole)
        if packed := self._deflate.compress(memoryview(filtered)[first:]):
            self._file.write(_chunk(b"IDAT", packed))
        self._above = rows[-1:].copy()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def _header(width: int, height: int, rest: bytes) -> bytes:
    """The first chunk; `rest`: bits, colours, compression, filters, interlacing, a byte each."""
    return _chunk(b"IHDR", width.to_bytes(4, "big") + height.to_bytes(4, "big") + rest)


def _chunks(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Kind and size of each chunk; the file then stands before its data."""
    place = len(_SIGNATURE)
    file.seek(place)
    while len(head := file.read(8)) == 8:
        size = int.from_bytes(head[:4], "big")
        yield head[4:], size
        place += 12 + size
        file.seek(place)


def _pixels_in(file: IO[bytes]) -> Iterator[bytes]:
    """The compressed pixels, a piece at a time."""
    for kind, size in _chunks(file):
        for start in range(0, size if kind == b"IDAT" else 0, _PIECE):
            yield file.read(min(_PIECE, size - start))


def _ends_in_pixels(path: str) -> bool:
    """Whether nothing stands behind the pixels, such as an orientation."""
    with open(path, "rb") as file:
        kinds = [kind for kind, _ in _chunks(file)]
    return kinds[-1] == b"IEND" and {*kinds[kinds.index(b"IDAT") : -1]} == {b"IDAT"}
