"""Images and masks: modes, depths, palettes, alpha, frames, encoders, EXIF, files that are torn or something else."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace

SIZE = (8, 12)
IMAGE, MASK = "images/1.png", "masks/1.png"
RAMP = np.linspace(0, 1, SIZE[0] * SIZE[1]).reshape(SIZE)
GREY = np.rint(RAMP * 255).astype(np.uint8)
RGB = np.stack([GREY, 255 - GREY, GREY // 2], -1)
IDS = (np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) // 7 % 2).astype(np.uint8)
EMPTY = np.full(SIZE, 255, np.uint8)
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 8\n(ran) (w) file closefile\nshowpage\n%%EOF\n"
COLORS = {(255, 0, 0): 0, (0, 0, 255): 1}
PALETTE = [255, 0, 0, 0, 0, 255]

Given = tuple[str, Callable[[Path], object]] | tuple[str, Callable[[Path], object], dict]


def outcome(given: Given, place: Path) -> np.ndarray | str:
    """Pixels of image 1, or train ids of mask 1, whichever was written, once the whole domain was checked."""
    where, write, *options = given
    settings = options[0] if options else {}
    path = place / "coast" / where
    path.parent.joinpath("1.png").unlink()
    write(path)
    labels = LabelSpace(("wall", "door"), **settings.get("labels", {}))
    domain = Domain.from_folder(place / "coast", labels, value_range=settings.get("value_range"))
    domain.check().raise_if_bad()
    image, mask = domain.select(["1"]).load(0)
    return np.asarray(image) if where.startswith("images") else mask


def saved(pixels: np.ndarray | Image.Image, file_type: str = "PNG", **options) -> Callable[[Path], object]:
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    return lambda path: picture.save(path, file_type, **options)


def content(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def encoded(pixels: np.ndarray, file_type: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, file_type, **options)
    return stream.getvalue()


def indexed(indices: np.ndarray, palette: list[int]) -> Image.Image:
    picture = Image.fromarray(indices).convert("L")
    picture.putpalette(palette)
    return picture


def rgba(pixels: np.ndarray, alpha: np.ndarray | int) -> np.ndarray:
    return np.concatenate([pixels, np.broadcast_to(np.uint8(alpha), SIZE)[..., None]], -1)


def turned(pixels: np.ndarray, orientation: int) -> Callable[[Path], object]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(pixels, exif=exif)


def gray3(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, -1)


def deep_rgb(values: np.ndarray) -> bytes:
    """A PNG of 16 bits a colour, which Pillow cannot write."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(rows)),
            (b"IEND", b""),
        )
    )


def huge(data: bytes) -> bytes:
    """The header says 100,000 x 100,000 pixels."""
    header = b"IHDR" + struct.pack(">II", 100_000, 100_000) + data[24:29]
    return data[:8] + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def flipped(data: bytes) -> bytes:
    where = data.index(b"IDAT") + 8
    return data[:where] + bytes([data[where] ^ 0xFF]) + data[where + 1 :]


def directory(path: Path) -> None:
    path.mkdir()


def one_bit(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(bool))


def colored(ids: np.ndarray) -> np.ndarray:
    return np.array([*COLORS], np.uint8)[ids]


FRAMES = {"save_all": True, "append_images": [Image.fromarray(IDS)]}
COUNTED = (np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) * 40).astype(np.uint16)

RIGHT = {
    # ---- images
    "image-grey": ((IMAGE, saved(GREY)), gray3(GREY)),
    "image-rgb": ((IMAGE, saved(RGB)), RGB),
    "image-of-one-bit": ((IMAGE, saved(one_bit(IDS))), gray3(IDS * 255)),
    "image-indexed": ((IMAGE, saved(indexed(IDS, PALETTE))), colored(IDS)),
    "image-opaque": ((IMAGE, saved(rgba(RGB, 255))), RGB),
    "image-with-holes": ((IMAGE, saved(rgba(RGB, IDS * 255))), RGB),
    "image-grey-with-alpha": ((IMAGE, saved(np.stack([GREY, EMPTY], -1))), gray3(GREY)),
    "image-bmp-called-png": ((IMAGE, saved(RGB, "BMP")), RGB),
    "image-tiff-called-png": ((IMAGE, saved(RGB, "TIFF")), RGB),
    "image-lossless-webp": ((IMAGE, saved(RGB, "WEBP", lossless=True)), RGB),
    "image-in-capitals": (("images/1.PNG", saved(RGB)), RGB),
    "image-turned-by-exif": ((IMAGE, turned(RGB.transpose(1, 0, 2)[::-1], 6)), RGB),
    "image-upside-down-by-exif": ((IMAGE, turned(RGB[::-1, ::-1], 3)), RGB),
    "image-of-12-bits-declared": (
        (IMAGE, saved((RAMP * 4095).astype(np.uint16)), {"value_range": (0, 4095)}),
        gray3(np.rint((RAMP * 4095).astype(np.uint16) / 4095 * 255).astype(np.uint8)),
    ),
    "image-of-16-bits-filled": (
        (IMAGE, saved((RAMP * 65535).astype(np.uint16))),
        gray3(((RAMP * 65535).astype(np.uint16) // 257).astype(np.uint8)),
    ),
    "image-of-fractions-declared": (
        (IMAGE, saved(RAMP.astype(np.float32), "TIFF"), {"value_range": (0, 1)}),
        gray3(np.rint(RAMP.astype(np.float32).astype(float) * 255).astype(np.uint8)),
    ),
    "image-of-nan-is-black": (
        (IMAGE, saved(np.where(IDS, np.nan, 1).astype(np.float32), "TIFF"), {"value_range": (0, 1)}),
        gray3((1 - IDS) * 255),
    ),
    "image-of-infinity-is-white": (
        (IMAGE, saved(np.where(IDS, np.inf, 0).astype(np.float32), "TIFF"), {"value_range": (0, 1)}),
        gray3(IDS * 255),
    ),
    "image-below-zero-is-black": (
        (IMAGE, saved(np.where(IDS, -5, 10).astype(np.int32), "TIFF"), {"value_range": (0, 10)}),
        gray3((1 - IDS) * 255),
    ),
    "image-with-bytes-behind-its-end": ((IMAGE, content(encoded(RGB) + b"<?php ?>")), RGB),
    # ---- masks
    "mask-of-ids": ((MASK, saved(IDS)), IDS),
    "mask-of-one-bit": ((MASK, saved(one_bit(IDS))), IDS),
    "mask-of-two-bits": ((MASK, saved(indexed(IDS, PALETTE), bits=2)), IDS),
    "mask-of-16-bits": ((MASK, saved(IDS.astype(np.uint16))), IDS),
    "mask-of-32-bits": ((MASK, saved(IDS.astype(np.int32), "TIFF")), IDS),
    "mask-with-ignored": ((MASK, saved(np.where(IDS, 255, 0).astype(np.uint8))), np.where(IDS, 255, 0)),
    "mask-0-255-declared": ((MASK, saved(IDS * 255), {"labels": {"ids": {0: 0, 255: 1, 1: 1}}}), IDS),
    "mask-below-zero-declared": (
        (MASK, saved(IDS.astype(np.int32) - 1, "TIFF"), {"labels": {"ids": {-1: 255, 0: 0, 1: 1}}}),
        np.where(IDS, 0, 255),
    ),
    "mask-of-large-ids-declared": (
        (MASK, saved(IDS.astype(np.uint16) * 40_000), {"labels": {"ids": {0: 0, 1: 1, 40_000: 1}}}),
        IDS,
    ),
    "mask-indexed": ((MASK, saved(indexed(IDS, PALETTE))), IDS),
    "mask-transparent-all-over": (
        (MASK, saved(rgba(colored(IDS), 0)), {"labels": {"colors": COLORS, "ids": {0: 0, 1: 1}}}),
        IDS,
    ),
    "mask-in-colour": ((MASK, saved(colored(IDS)), {"labels": {"colors": COLORS, "ids": {0: 0, 1: 1}}}), IDS),
    "mask-lossless-webp": (
        (MASK, saved(colored(IDS), "WEBP", lossless=True), {"labels": {"colors": COLORS, "ids": {0: 0, 1: 1}}}),
        IDS,
    ),
    "mask-gif-of-one-frame": (("masks/1.gif", saved(indexed(IDS, PALETTE), "GIF")), IDS),
    "mask-in-tiff": (("masks/1.tif", saved(IDS, "TIFF", compression="tiff_lzw")), IDS),
    "mask-is-never-turned": ((MASK, turned(IDS, 3)), IDS),
}
REFUSED = {
    # ---- files that are no pictures, images and masks alike
    **{
        f"{what}-{name}": ((where, write), part)
        for what, where in (("image", IMAGE), ("mask", MASK))
        for name, write, part in (
            ("empty", content(b""), "1.png: cannot be read"),
            ("torn", content(encoded(IDS)[:60]), "1.png: cannot be read"),
            ("flipped", content(flipped(encoded(IDS))), "1.png: cannot be read"),
            ("zeros", content(bytes(4096)), "1.png: cannot be read"),
            ("html", content(b"<html>404</html>"), "1.png: cannot be read"),
            ("svg", content(b'<svg xmlns="http://www.w3.org/2000/svg"/>'), "no picture of the formats"),
            ("postscript", content(POSTSCRIPT), "no picture of the formats"),
            ("pdf", content(b"%PDF-1.4\n"), "no picture of the formats"),
            ("numpy", content(b"\x93NUMPY\x01\x00"), "no picture of the formats"),
            ("pickle", content(b"cos\nsystem\n(S'touch ran'\ntR."), "no picture of the formats"),
            ("git-lfs", content(b"version https://git-lfs.github.com/spec/v1\n"), "no picture of the formats"),
            ("huge", content(huge(encoded(IDS))), "too large to be decoded"),
            ("link-to-nothing", lambda path: path.symlink_to("gone.png"), "1.png: cannot be read"),
            ("link-to-itself", lambda path: path.symlink_to(path), "1.png: cannot be read"),
            ("frames", saved(IDS, "TIFF", **FRAMES), "holds 2 pages or frames"),
            ("five-bands", saved(Image.merge("CMYK", [Image.fromarray(GREY)] * 4), "TIFF"), "1.png"),
            ("smaller", saved(IDS[:5]), "make them one size"),
            ("turned", saved(IDS.T.copy()), "make them one size"),
            ("one-pixel", saved(IDS[:1, :1]), "make them one size"),
        )
    },
    "image-of-12-bits": ((IMAGE, saved((RAMP * 4095).astype(np.uint16))), "data.value_range"),
    "image-of-32-bits": ((IMAGE, saved((RAMP * 4095).astype(np.int32), "TIFF")), "data.value_range"),
    "image-of-fractions": ((IMAGE, saved(RAMP.astype(np.float32), "TIFF")), "fractions 0..1"),
    "image-of-nan-alone": ((IMAGE, saved(np.full(SIZE, np.nan, np.float32), "TIFF")), "1.png: holds no number"),
    "image-of-infinity": ((IMAGE, saved(np.full(SIZE, np.inf, np.float32), "TIFF")), "1.png: holds no number"),
    "image-of-some-infinity": (
        (IMAGE, saved(np.where(IDS, np.inf, 9).astype(np.float32), "TIFF")),
        "holds fractions 9..9",
    ),
    "image-in-half-transparent": ((IMAGE, saved(rgba(RGB, GREY))), "would be dropped as an alpha channel"),
    "image-of-lab": ((IMAGE, saved(Image.fromarray(RGB).convert("LAB"), "TIFF")), "image of mode LAB"),
    "image-dark-of-16-bits-a-colour": ((IMAGE, content(deep_rgb(RGB.astype(np.uint16) * 16))), "colours of 16 bits"),
    "image-moving": (
        ("images/1.gif", saved(RGB, "GIF", save_all=True, append_images=[Image.fromarray(RGB[::-1])])),
        "holds 2 pages or frames",
    ),
    "image-declared-upside-down": ((IMAGE, saved(RGB), {"value_range": (5, 1)}), "value_range: found (5, 1)"),
    # ---- masks
    "mask-jpeg-called-png": ((MASK, saved(IDS, "JPEG")), "is compressed by JPEG"),
    "mask-jpeg": (("masks/1.jpg", saved(IDS, "JPEG")), "is compressed by JPEG"),
    "mask-jpeg-inside-tiff": ((MASK, saved(IDS, "TIFF", compression="jpeg")), "JPEG inside a TIFF"),
    "mask-lossy-webp": ((MASK, saved(colored(IDS), "WEBP")), "lossy WebP"),
    "mask-of-unknown-ids": ((MASK, saved(COUNTED.astype(np.uint8))), "if the masks hold a data set's own ids"),
    "mask-of-many-ids": ((MASK, saved(COUNTED)), "Many odd ids mean"),
    "mask-below-zero": ((MASK, saved(IDS.astype(np.int32) - 1, "TIFF")), "found the ids -1"),
    "mask-far-below-zero": ((MASK, saved(IDS.astype(np.int32) * -9999, "TIFF")), "-9999: 255}"),
    "mask-beyond-16-bits": ((MASK, saved(IDS.astype(np.int32) * 70_000, "TIFF")), "found the ids 70000"),
    "mask-of-fractions": ((MASK, saved(IDS.astype(np.float32), "TIFF")), "mask of mode F"),
    "mask-of-nan": ((MASK, saved(np.full(SIZE, np.nan, np.float32), "TIFF")), "mask of mode F"),
    "mask-grey-with-alpha": ((MASK, saved(np.stack([IDS, EMPTY], -1))), "mask of mode LA"),
    "mask-class-in-alpha": ((MASK, saved(rgba(RGB * 0, IDS))), "tells pixels of one colour apart"),
    "mask-in-undeclared-colours": ((MASK, saved(RGB)), "Many odd colours mean"),
    "mask-of-16-bits-a-colour": ((MASK, content(deep_rgb(colored(IDS).astype(np.uint16)))), "colours of 16 bits"),
    "mask-moving": (
        ("masks/1.gif", saved(IDS, "GIF", save_all=True, append_images=[Image.fromarray(1 - IDS)])),
        "2 pages",
    ),
    "mask-with-a-palette-of-its-own": (
        (
            MASK,
            lambda path: (
                saved(indexed(IDS, PALETTE))(path),
                saved(indexed(IDS, PALETTE[3:] + PALETTE[:3]))(path.with_name("0.png")),
            ),
        ),
        "its palette is not that of the other masks",
    ),
    "mask-whose-palette-contradicts": (
        (MASK, saved(indexed(IDS, PALETTE[3:] + PALETTE[:3])), {"labels": {"colors": COLORS, "ids": {0: 0, 1: 1}}}),
        "its palette contradicts labels.colors",
    ),
    "mask-inverted": ((MASK, saved(IDS, "TIFF", tiffinfo={262: 0})), "WhiteIsZero"),
    "mask-is-a-folder": ((MASK, directory), "has no pair 1"),
    "image-twice": (
        (IMAGE, lambda path: (saved(RGB)(path), saved(RGB, "BMP")(path.with_suffix(".bmp")))),
        "has the same id (1)",
    ),
    "image-of-another-type": (("images/1.npy", lambda path: np.save(path, RGB)), "has no pair 1"),
}
