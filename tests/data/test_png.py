"""PNG files decoded by kornia-rs: the pixels, the metadata and the errors of Pillow."""

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from deft_hf.data import png
from deft_hf.data.look import opened
from deft_hf.data.opening import open_mask, open_picture
from deft_hf.utils.errors import UnreadableFile

RNG = np.random.default_rng(0)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def written(array, before=b"", after=b"", filters=(0, 1, 2, 3, 4), parts=3):
    """A PNG file of 8 bits with chunks around its pixels; filters other than 0 make others of `array`."""
    height, width = array.shape[:2]
    rows = b"".join(bytes([filters[row % len(filters)]]) + array[row].tobytes() for row in range(height))
    packed = zlib.compress(rows)
    size = -(-len(packed) // parts)
    pixels = b"".join(chunk(b"IDAT", packed[start : start + size]) for start in range(0, len(packed), size))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0 if array.ndim == 2 else 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + pixels + after + chunk(b"IEND", b"")


def by_pillow(content):
    picture = opened(content)
    picture.load()
    return picture


@pytest.mark.parametrize("shape", [(1, 1), (11, 20), (37, 64, 3), (5, 3, 3)])
def test_the_pixels_are_pillows(shape):
    content = written(RNG.integers(0, 256, shape, np.uint8))
    assert png._by_kornia(opened(content)) is not None
    decoded, expected = png.loaded(opened(content)), by_pillow(content)
    assert (decoded.mode, decoded.size, decoded.tobytes()) == (expected.mode, expected.size, expected.tobytes())


def test_a_very_large_file_is_left_to_pillow_which_holds_no_copy(monkeypatch):
    content = written(RNG.integers(0, 256, (11, 20), np.uint8))
    monkeypatch.setattr(png, "_MOST_PIXELS", 219)
    assert png._by_kornia(opened(content)) is None
    monkeypatch.setattr(png, "_MOST_PIXELS", 220)
    assert png._by_kornia(opened(content)) is not None


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "I;16"])
def test_other_kinds_are_left_to_pillow(mode):
    stream = io.BytesIO()
    Image.fromarray(RNG.integers(0, 2, (6, 7), np.uint8)).convert(mode).save(stream, "PNG")
    assert png._by_kornia(opened(stream.getvalue())) is None
    assert png.loaded(opened(stream.getvalue())).tobytes() == by_pillow(stream.getvalue()).tobytes()


def test_a_file_is_closed_and_keeps_what_stands_before_its_pixels(tmp_path):
    told = PngInfo()
    told.add_text("Author", "nobody")
    Image.new("RGB", (4, 3), (7, 8, 9)).save(tmp_path / "a.png", pnginfo=told)
    picture = opened(str(tmp_path / "a.png"))
    stream, decoded = picture.fp, png.loaded(picture)
    assert stream.closed and decoded.info["Author"] == "nobody" and decoded.getpixel((0, 0)) == (7, 8, 9)


@pytest.mark.parametrize("place", ["before", "after"])
def test_an_orientation_before_or_after_the_pixels_is_heeded(place):
    exif = Image.Exif()
    exif[274] = 6
    array = RNG.integers(0, 256, (4, 6, 3), np.uint8)
    turn = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    image, _ = open_picture({"bytes": written(array, filters=(0,), **{place: turn}), "path": None}, "a")
    np.testing.assert_array_equal(image, np.rot90(array, -1))


@pytest.mark.parametrize("open_cell", [open_picture, open_mask])
def test_broken_files_are_pillows_to_name(open_cell):
    content = written(RNG.integers(0, 256, (40, 50), np.uint8))
    changed = bytearray(content)
    changed[len(content) // 2] ^= 16
    for broken in (content[: len(content) // 2], bytes(changed), content[:-30]):
        with pytest.raises(UnreadableFile, match="^a: cannot be read"):
            open_cell({"bytes": broken, "path": None}, "a")


def test_in_threads_pillow_decodes(monkeypatch):
    monkeypatch.setattr(png, "_by_kornia", lambda picture: pytest.fail("kornia-rs holds Python's lock"))
    content = written(RNG.integers(0, 256, (8, 9), np.uint8))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(png.loaded, opened(content)).result().tobytes() == by_pillow(content).tobytes()
