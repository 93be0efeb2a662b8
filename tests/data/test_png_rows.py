"""Rows of PNG files: the pixels that Pillow decodes and encodes of the whole file."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from deft_hf.data import png_rows
from deft_hf.data.png_rows import PngRows, PngWriter
from deft_hf.utils.errors import UnreadableFile


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    monkeypatch.setattr(png_rows, "_AT_ONCE", 7)
    monkeypatch.setattr(png_rows, "_PIECE", 100)


def drawn(mode="RGB", height=61, width=43):
    """Smooth below noise, so that every filter occurs."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    bands = np.stack([x * 3 + y, x * y // 7, (x - y) ** 2 // 9], -1) % 256
    bands[: height // 3] = np.random.default_rng(0).integers(0, 256, (height // 3, width, 3))
    return Image.fromarray(bands.astype(np.uint8)).convert(mode)


def filters_of(path):
    """The kinds of filters that the rows of an RGB file have."""
    content = b"".join(pixels_in(path))
    width = Image.open(path).width
    return {*zlib.decompress(content)[:: 1 + 3 * width]}


def pixels_in(path):
    with open(path, "rb") as file:
        yield from png_rows._pixels_in(file)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_cuts_are_those_of_the_whole_picture(mode, tmp_path):
    image = drawn(mode)
    image.save(path := tmp_path / "a.png")
    if mode == "RGB":
        assert len(filters_of(path)) > 2
    rows = PngRows.open(str(path))
    assert (rows.height, rows.width) == (61, 43)
    whole = image.convert("RGB")
    for box in [(0, 0, 20, 10), (15, 0, 43, 10), (0, 6, 43, 16), (0, 6, 43, 9), (3, 20, 9, 50), (0, 49, 43, 61)]:
        cut = rows.crop(box)
        assert cut.mode == "RGB" and cut.tobytes() == whole.crop(box).tobytes(), box
    rows.close()


def turned(image, path):
    exif = Image.Exif()
    exif[274] = 6
    image.save(path, exif=exif)


def turned_behind(image, path):
    turned(image, path)
    content = path.read_bytes()
    place = content.index(b"eXIf") - 4
    chunk = content[place : place + 12 + int.from_bytes(content[place : place + 4], "big")]
    path.write_bytes(content.replace(chunk, b"")[:-12] + chunk + content[-12:])


def interlaced(image, path):
    image.save(path)
    content = bytearray(path.read_bytes())
    content[28] = 1
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


@pytest.mark.parametrize(
    "save",
    [
        turned,
        turned_behind,
        interlaced,
        lambda image, path: image.save(path, format="JPEG"),
        lambda image, path: image.convert("RGBA").save(path),
        lambda image, path: image.convert("P").save(path),
        lambda image, path: image.convert("1").save(path),
        lambda image, path: image.save(path, transparency=(0, 0, 0)),
        lambda image, path: image.save(path, save_all=True, append_images=[image.rotate(180)]),
        lambda image, path: Image.fromarray(np.zeros((9, 9), np.uint16)).save(path),
        lambda image, path: path.write_bytes(b"\x89PNG\r\n\x1a\n"),
        lambda image, path: path.mkdir(),
        lambda image, path: None,
    ],
)
def test_what_must_be_read_as_a_whole_is_left_to_others(save, tmp_path):
    save(drawn(), path := tmp_path / "a.png")
    assert PngRows.open(str(path)) is None


@pytest.mark.parametrize("damage", ["truncated", "zlib", "filter"])
def test_a_file_that_breaks_off_is_one_message(damage, tmp_path):
    drawn().save(path := tmp_path / "a.png")
    content = path.read_bytes()
    place = content.index(b"IDAT") + 4
    if damage == "truncated":
        content = content[: len(content) // 2]
        content += png_rows._chunk(b"IEND", b"")
        size = len(content) - 12 - place - 4
        content = content[: place - 8] + size.to_bytes(4, "big") + content[place - 4 :]
    elif damage == "zlib":
        content = content[: place + 700] + bytes(99) + content[place + 799 :]
    else:
        filtered = bytearray(zlib.decompress(b"".join(pixels_in(path))))
        filtered[130 * 30] = 9
        idat = png_rows._chunk(b"IDAT", zlib.compress(filtered))
        content = content[: place - 8] + idat + png_rows._chunk(b"IEND", b"")
    path.write_bytes(content)
    rows = PngRows.open(str(path))
    with pytest.raises(UnreadableFile, match="a.png: cannot be read"):
        rows.crop((0, 0, 43, 61))
    rows.close()


@pytest.mark.parametrize("kind", ["L", "RGB", "I;16"])
def test_rows_make_the_file_that_pillow_makes(kind, tmp_path):
    image = Image.fromarray(np.arange(61 * 43, dtype=np.uint16).reshape(61, 43)) if kind == "I;16" else drawn(kind)
    pixels = np.asarray(image)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() if kind == "RGB" else None
    with PngWriter(tmp_path / "a.png", 61, 6) as writer:
        for top, bottom in [(0, 1), (1, 2), (2, 40), (40, 61)]:
            writer.write(pixels[top:bottom], profile)
    found = Image.open(tmp_path / "a.png")
    assert found.mode == image.mode and np.array_equal(np.asarray(found), pixels)
    assert found.info == ({"icc_profile": profile} if profile else {})
    image.save(stream := io.BytesIO(), "PNG", compress_level=6)
    (tmp_path / "b.png").write_bytes(stream.getvalue())
    ours, pillows = (b"".join(pixels_in(tmp_path / f"{name}.png")) for name in "ab")
    assert zlib.decompress(ours) == zlib.decompress(pillows)
    assert len(ours) <= 1.01 * len(pillows)


def test_a_file_given_up_has_no_end(tmp_path):
    with pytest.raises(KeyError), PngWriter(tmp_path / "a.png", 61, 6) as writer:
        writer.write(np.zeros((3, 4), np.uint8))
        raise KeyError
    assert b"IEND" not in (tmp_path / "a.png").read_bytes()
