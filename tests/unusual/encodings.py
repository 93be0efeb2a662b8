"""Images and masks that other programs write: TIFF, PNG, PNM, BMP and WebP byte by byte, names, folders and links."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from tests.unusual import pictures
from tests.unusual.pictures import (
    COLORS,
    EMPTY,
    GREY,
    IDS,
    IMAGE,
    MASK,
    PALETTE,
    RAMP,
    RGB,
    SIZE,
    colored,
    content,
    encoded,
    gray3,
    indexed,
    one_bit,
    rgba,
    saved,
)

H, W = SIZE
BY_COLOR = {"labels": {"colors": COLORS}}


def outcome(given, place: Path):
    """As for pictures; of a folder, the ids of its pairs once all were checked."""
    if given[0] != "folder":
        return pictures.outcome(given, place)
    folder = place / "coast"
    given[1](folder)
    domain = Domain.from_folder(folder, LabelSpace(("wall", "door")), **(given[2] if len(given) > 2 else {}))
    domain.check().raise_if_bad()
    return domain.ids


def png(bits: int, kind: int, rows: bytes, *chunks: tuple[bytes, bytes], interlaced: bool = False, size=(W, H)):
    header = b"IHDR", struct.pack(">IIBBBBB", *size, bits, kind, 0, 0, interlaced)
    parts = [header, *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    framed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
    return content(b"\x89PNG\r\n\x1a\n" + b"".join(framed))


def rows(pixels: np.ndarray, filtered: int = 0) -> bytes:
    return b"".join(bytes([filtered]) + row.tobytes() for row in pixels)


def adam7(pixels: np.ndarray) -> bytes:
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    parts = (pixels[top::down, left::right] for top, left, down, right in passes)
    return b"".join(rows(part) for part in parts if part.size)


def bits4(ids: np.ndarray) -> np.ndarray:
    return ids[:, ::2] << 4 | ids[:, 1::2]


def tiff(pixels: np.ndarray, **changed: int) -> bytes:
    """Uncompressed, little-endian, with as many bands and bits as the array has."""
    bands, data = pixels.shape[2], pixels.tobytes()
    bits = struct.pack(f"<{bands}H", *[8 * pixels.itemsize] * bands)
    short = int.from_bytes(bits.ljust(4, b"\0"), "little")
    tags = {256: W, 257: H, 258: short if bands <= 2 else 8 + len(data), 259: 1, 262: 1, 273: 8, 277: bands}
    tags |= {278: H, 279: len(data), 284: 1} | {int(tag[1:]): value for tag, value in changed.items()}
    entries = [
        struct.pack("<HHII", tag, *((3, bands) if tag == 258 else (4, 1)), value)
        for tag, value in sorted(tags.items())
    ]
    start = struct.pack("<I", 8 + len(data) + len(bits))
    return b"II*\0" + start + data + bits + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


def pnm(kind: str, most: int | None, pixels: np.ndarray) -> bytes:
    lines = [kind, f"{W} {H}", *([] if most is None else [str(most)])]
    return "".join(f"{line}\n" for line in lines).encode() + pixels.tobytes()


def bmp(bits: int, pixels: np.ndarray, height: int = -H) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, W, height, 1, bits, 0, pixels.nbytes, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + pixels.nbytes, 0, 0, 54) + header + pixels.tobytes()


def pair(image: str, mask: str):
    return lambda folder: (saved(RGB)(folder / "images" / image), saved(IDS)(folder / "masks" / mask))


def mutual_links(folder: Path) -> None:
    for one, other in ("ab", "ba"):
        (folder / "images" / one).mkdir()
        (folder / "images" / one / "x").symlink_to(folder / "images" / other)


def folders_with_a_suffix(folder: Path) -> None:
    for kind, pixels in (("images", RGB), ("masks", IDS)):
        (folder / kind / "x.png").mkdir()
        (folder / kind / "y.png").mkdir()
        saved(pixels)(folder / kind / "x.png" / "5.png")


def of_size(pixels: np.ndarray):
    def write(path: Path) -> None:
        saved(pixels)(path)
        saved(pixels[..., 0] // 255)(path.parent.parent / MASK)

    return write


WIDE = np.zeros((10, 20_000, 3), np.uint8)
U32 = np.rint(RAMP * (2**32 - 1)).astype(np.uint32)[..., None]

RIGHT = {
    # ---- masks
    "mask-interlaced": ((MASK, png(8, 0, adam7(IDS), interlaced=True)), IDS),
    "mask-interlaced-of-16-bits": ((MASK, png(16, 0, adam7(IDS.astype(">u2")), interlaced=True)), IDS),
    "mask-with-gamma": ((MASK, png(8, 0, rows(IDS), (b"gAMA", struct.pack(">I", 45455)))), IDS),
    "mask-with-significant-bits": ((MASK, png(8, 0, rows(IDS), (b"sBIT", b"\x01"))), IDS),
    "mask-with-a-profile": ((MASK, saved(IDS, icc_profile=b"x" * 64)), IDS),
    "mask-of-4-bits": ((MASK, png(4, 0, rows(bits4(IDS)))), IDS),
    "mask-of-4-bits-with-a-transparent-one": ((MASK, png(4, 0, rows(bits4(IDS)), (b"tRNS", b"\0\1"))), IDS),
    "mask-of-1-bit": ((MASK, png(1, 0, rows(np.packbits(IDS, axis=1)))), IDS),
    "mask-grey-with-a-palette-beside": ((MASK, png(8, 0, rows(IDS), (b"PLTE", bytes(PALETTE)))), IDS),
    "mask-in-colour-with-a-transparent-one": (
        (MASK, png(8, 2, rows(colored(IDS)), (b"tRNS", struct.pack(">HHH", 255, 0, 0))), BY_COLOR),
        IDS,
    ),
    "mask-indexed-with-a-transparent-index": ((MASK, saved(indexed(IDS, PALETTE), transparency=0)), IDS),
    "mask-indexed-with-alphas": ((MASK, saved(indexed(IDS, PALETTE), transparency=b"\x00\x80"), BY_COLOR), IDS),
    "mask-gif-transparent": (("masks/1.gif", saved(indexed(IDS, PALETTE), "GIF", transparency=1)), IDS),
    "mask-of-16-bits-above-255": (
        (MASK, saved(IDS.astype(np.uint16) * 300), {"labels": {"ids": {0: 0, 1: 1, 300: 1}}}),
        IDS,
    ),
    "mask-in-big-endian-tiff": (
        (MASK, saved(Image.frombytes("I;16B", (W, H), IDS.astype(">u2").tobytes()), "TIFF")),
        IDS,
    ),
    "mask-in-big-tiff": (("masks/1.tif", saved(IDS, "TIFF", big_tiff=True)), IDS),
    "mask-in-fax-tiff": (("masks/1.tif", saved(one_bit(IDS), "TIFF", compression="group4")), IDS),
    "mask-in-packed-tiff": (("masks/1.tif", saved(IDS, "TIFF", compression="packbits")), IDS),
    "mask-in-indexed-tiff": (("masks/1.tif", saved(indexed(IDS, PALETTE), "TIFF")), IDS),
    "mask-of-unsigned-32-bits": (("masks/1.tif", content(tiff(IDS[..., None].astype(np.uint32)))), IDS),
    "mask-pgm-of-maximum-1": (("masks/1.pgm", content(pnm("P5", 1, IDS))), IDS),
    "mask-pgm-of-maximum-15": (("masks/1.pgm", content(pnm("P5", 15, IDS))), IDS),
    "mask-pgm-of-maximum-1000": (("masks/1.pgm", content(pnm("P5", 1000, IDS.astype(">u2")))), IDS),
    "mask-pgm-of-16-bits": (("masks/1.pgm", content(pnm("P5", 65535, IDS.astype(">u2")))), IDS),
    "mask-bmp-of-1-bit": (("masks/1.bmp", saved(one_bit(IDS), "BMP")), IDS),
    "mask-bmp-indexed": (("masks/1.bmp", saved(indexed(IDS, PALETTE), "BMP"), BY_COLOR), IDS),
    "mask-bmp-of-32-bits": (
        ("masks/1.bmp", content(bmp(32, IDS.astype("<u4"))), {"labels": {"colors": {(0, 0, 0): 0, (0, 0, 1): 1}}}),
        IDS,
    ),
    "mask-webp-opaque": (
        ("masks/1.webp", saved(rgba(colored(IDS), 255), "WEBP", lossless=True, exact=True), BY_COLOR),
        IDS,
    ),
    "mask-called-jpg": (("masks/1.jpg", saved(IDS)), IDS),
    "mask-of-two-ids-in-one-class": ((MASK, saved(IDS), {"labels": {"ids": {0: 1, 1: 1}}}), np.ones_like(IDS)),
    # ---- images
    "image-interlaced": ((IMAGE, png(8, 2, adam7(RGB), interlaced=True)), RGB),
    "image-of-16-bits-a-colour": ((IMAGE, content(pictures.deep_rgb(RGB.astype(np.uint16) * 257))), RGB),
    "image-indexed-with-a-transparent-index": ((IMAGE, saved(indexed(IDS, PALETTE), transparency=0)), colored(IDS)),
    "image-indexed-with-alphas": ((IMAGE, saved(indexed(IDS, PALETTE), transparency=b"\x00\x80")), colored(IDS)),
    "image-with-a-transparent-colour": ((IMAGE, saved(RGB, transparency=(0, 255, 0))), RGB),
    "image-all-transparent": ((IMAGE, saved(rgba(RGB, 0))), RGB),
    "image-turned-by-tiff": (("images/1.tif", saved(RGB[::-1, ::-1].copy(), "TIFF", tiffinfo={274: 3})), RGB),
    "image-of-no-such-orientation": ((IMAGE, pictures.turned(RGB, 9)), RGB),
    "image-in-inverted-tiff": (("images/1.tif", saved(GREY, "TIFF", tiffinfo={262: 0})), gray3(GREY)),
    "image-of-unsigned-32-bits": (
        ("images/1.tif", content(tiff(U32)), {"value_range": (0, 2**32 - 1)}),
        gray3(np.rint(U32[..., 0] / (2**32 - 1) * 255).astype(np.uint8)),
    ),
    "image-pfm-declared": (
        ("images/1.pgm", content(pnm("Pf", -1, RAMP[::-1].astype("<f4"))), {"value_range": (0, 1)}),
        gray3(np.rint(RAMP * 255).astype(np.uint8)),
    ),
    "image-pgm-of-maximum-1": (("images/1.pgm", content(pnm("P5", 1, IDS))), gray3(IDS * 255)),
    "image-one-pixel": ((IMAGE, of_size(RGB[:1, :1].copy())), RGB[:1, :1]),
    "image-20000-wide": ((IMAGE, of_size(WIDE)), WIDE),
    # ---- names and folders
    "folders-called-png": (("folder", folders_with_a_suffix), ["0", "1", "2", "x.png/5"]),
    "links-to-one-another": (("folder", mutual_links), ["0", "1", "2"]),
    "a-link-to-itself": (("folder", lambda at: (at / "images/s").symlink_to(at / "images/s")), ["0", "1", "2"]),
    "a-line-break-in-a-name": (("folder", pair("a\nb.png", "a\nb.png")), ["0", "1", "2", "a\nb"]),
    "a-space-for-a-name": (("folder", pair(" .png", " .png")), [" ", "0", "1", "2"]),
    "dots-in-a-name": (("folder", pair("a.b.png", "a.b.png")), ["0", "1", "2", "a.b"]),
    "names-that-differ-by-case": (
        ("folder", lambda at: [pair(f"{n}.png", f"{n}.png")(at) for n in "Aa"]),
        list("012Aa"),
    ),
    "a-mask-in-another-case": (("folder", pair("A.png", "a.png")), ["0", "1", "2"]),
    "a-hidden-file": (("folder", lambda at: saved(RGB)(at / "images/._1.png")), ["0", "1", "2"]),
    "a-long-name": (("folder", pair("a" * 250 + ".png", "a" * 250 + ".png")), ["0", "1", "2", "a" * 250]),
}
ESCAPE = "a\x1b[31m.png"
UNLIKE = "save it as a PNG of one of these"
REFUSED = {
    # ---- masks
    "mask-turned-by-tiff": (("masks/1.tif", saved(IDS, "TIFF", tiffinfo={274: 3})), "Orientation tag"),
    "mask-on-its-side-by-tiff": (("masks/1.tif", saved(IDS.T.copy(), "TIFF", tiffinfo={274: 6})), "Orientation tag"),
    "mask-pbm": (("masks/1.pgm", content(pnm("P4", None, np.packbits(IDS, axis=1)))), "0 is white"),
    "mask-pbm-as-text": (
        ("masks/1.pgm", content(b"P1\n12 8\n" + b" ".join(b"%d" % v for v in IDS.ravel()))),
        "0 is white",
    ),
    "mask-pgm-above-its-maximum": (("masks/1.pgm", content(pnm("P5", 1, IDS * 7))), "found the ids 7"),
    "mask-pfm": (("masks/1.pgm", content(pnm("Pf", -1, IDS.astype("<f4")))), "mask of mode F"),
    "mask-cmyk": ((MASK, saved(Image.merge("CMYK", [Image.fromarray(IDS)] * 4), "TIFF")), UNLIKE),
    "mask-apng": ((MASK, saved(IDS, save_all=True, append_images=[Image.fromarray(1 - IDS)])), "2 pages or frames"),
    "mask-apng-with-a-still": (
        (MASK, saved(IDS, save_all=True, default_image=True, append_images=[Image.fromarray(1 - IDS)])),
        "2 pages or frames",
    ),
    "mask-moving-webp": (
        (
            "masks/1.webp",
            saved(colored(IDS), "WEBP", lossless=True, save_all=True, append_images=[Image.fromarray(RGB)]),
        ),
        "2 pages or frames",
    ),
    "mask-lossy-webp-with-alpha": (("masks/1.webp", saved(rgba(colored(IDS), 255), "WEBP")), "lossy WebP"),
    "mask-mpo": (
        ("masks/1.jpg", saved(IDS, "MPO", save_all=True, append_images=[Image.fromarray(IDS)])),
        "is compressed by JPEG",
    ),
    "mask-jpeg-2000": ((MASK, saved(IDS, "JPEG2000")), "no picture of the formats"),
    "mask-tiff-of-2-bands": (("masks/1.tif", content(tiff(np.stack([IDS, IDS], -1)))), "2 bands of 8 bits"),
    "mask-tiff-of-5-bands": (("masks/1.tif", content(tiff(np.stack([IDS] * 5, -1)))), "5 bands of 8 bits"),
    "mask-tiff-of-64-bits": (("masks/1.tif", content(tiff(IDS[..., None].astype("<u8")))), "at most 32 bits"),
    "mask-tiff-of-unknown-compression": (
        ("masks/1.tif", content(tiff(IDS[..., None], t259=34887))),
        "compression that is not read (method 34887)",
    ),
    "mask-tiff-torn": (("masks/1.tif", content(encoded(IDS, "TIFF")[:-40])), "is truncated"),
    "mask-grey-with-alpha-of-16-bits": (
        (MASK, png(16, 4, rows(np.stack([IDS, EMPTY], -1).astype(">u2")))),
        "colours of 16 bits",
    ),
    "mask-of-256-undeclared": ((MASK, saved(IDS.astype(np.uint16) * 256)), "found the ids 256"),
    "mask-with-a-short-palette": (
        (MASK, png(8, 3, rows(IDS), (b"PLTE", bytes(PALETTE[:3]))), BY_COLOR),
        "which labels.colors does not list",
    ),
    "mask-of-an-unknown-filter": ((MASK, png(8, 0, rows(IDS, filtered=9))), "1.png: cannot be read"),
    "mask-of-7-bits": ((MASK, png(7, 0, rows(IDS))), "1.png: cannot be read"),
    "mask-too-short": ((MASK, png(8, 0, rows(IDS)[:40])), "is truncated"),
    "mask-of-no-size": ((MASK, png(8, 0, b"", size=(0, 0))), "1.png: cannot be read"),
    "mask-with-a-text-bomb": (
        (MASK, png(8, 0, rows(IDS), (b"zTXt", b"a\0\0" + zlib.compress(bytes(4_000_000))))),
        "1.png: cannot be read",
    ),
    "mask-that-is-a-pipe": ((MASK, os.mkfifo), "no regular file"),
    "mask-that-is-a-device": ((MASK, lambda path: path.symlink_to("/dev/zero")), "no regular file"),
    "mask-ids-as-fractions": ((MASK, saved(IDS), {"labels": {"ids": {0.0: 0, 1: 1}}}), "found the raw id 0.0"),
    "mask-ids-as-truth": ((MASK, saved(IDS), {"labels": {"ids": {False: 0, True: 1}}}), "found the raw id False"),
    "mask-colours-of-two-numbers": ((MASK, saved(IDS), {"labels": {"colors": {(255, 0): 0}}}), "the colour (255, 0)"),
    "mask-palette-with-a-colour-twice": (
        (MASK, saved(colored(IDS)), {"labels": {"palette": [(1, 1, 1), (1, 1, 1)]}}),
        "two classes share a colour",
    ),
    # ---- images
    "image-pfm": (("images/1.pgm", content(pnm("Pf", -1, RAMP.astype("<f4")))), "data.value_range"),
    "image-below-zero": ((IMAGE, saved((RAMP * 100 - 50).astype(np.int32), "TIFF")), "such as [-50, 255]"),
    "image-of-signed-bytes": (("images/1.tif", saved(GREY, "TIFF", tiffinfo={339: 2})), "bytes with a sign"),
    "image-of-2-bands": (("images/1.tif", content(tiff(np.stack([GREY, GREY], -1)))), "2 bands of 8 bits"),
    "image-of-64-bit-fractions": (("images/1.tif", content(tiff(RAMP[..., None]))), "1 band of 64 bits"),
    "image-grey-in-half-transparent": ((IMAGE, saved(np.stack([GREY, GREY], -1))), "dropped as an alpha"),
    "image-apng": (
        (IMAGE, saved(RGB, save_all=True, append_images=[Image.fromarray(255 - RGB)])),
        "2 pages or frames",
    ),
    "image-pgm-of-maximum-0": (("images/1.pgm", content(pnm("P5", 0, IDS))), "1.pgm: cannot be read"),
    "image-ppm-as-text-torn": (("images/1.ppm", content(b"P3\n12 8\n255\n1 2 3")), "1.ppm: cannot be read"),
    "image-jpeg-torn": (("images/1.jpg", content(encoded(RGB, "JPEG")[:-30])), "1.jpg: cannot be read"),
    "image-icon": ((IMAGE, saved(RGB, "ICO")), "no picture of the formats"),
    "image-range-of-infinity": ((IMAGE, saved(RGB), {"value_range": (0, np.inf)}), "value_range: found (0, inf)"),
    # ---- names and folders
    "a-name-of-the-suffix-alone": (
        ("folder", pair("_x.png", "_y.png"), {"image_suffix": "_x", "mask_suffix": "_y"}),
        "nothing is left of its name",
    ),
    "a-name-in-two-types": (("folder", pair("0.jpg", "9.png")), "has the same id (0)"),
    "a-name-in-two-unicode-forms": (
        ("folder", lambda at: [pair(name, name)(at) for name in ("\u00e9.png", "e\u0301.png")]),
        "has the same id",
    ),
    "a-link-to-the-folder-above": (("folder", lambda at: (at / "images/l").symlink_to(at)), "that it lies in"),
    "a-control-character-in-a-name": (
        ("folder", lambda at: [pair(ESCAPE, ESCAPE)(at), saved(RGB)(at / "masks" / ESCAPE)]),
        r"a\x1b[31m.png",
    ),
}
