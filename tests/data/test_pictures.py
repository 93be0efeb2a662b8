"""Images of other depth, type and bands: as bright as they were drawn, or refused with what to declare."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from deft_hf.data import look
from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.data.opening import open_mask, open_picture
from deft_hf.utils.errors import UnreadableFile, UserError

from .test_masks import png

LABELS = LabelSpace(("a", "b"))
GREY = np.linspace(0, 1, 12 * 16).reshape(12, 16)


def cell(picture, file_type, **options):
    stream = io.BytesIO()
    picture.save(stream, file_type, **options)
    return {"bytes": stream.getvalue(), "path": None}


def read(picture, file_type, value_range=None, **options):
    return np.asarray(open_picture(cell(picture, file_type, **options), "x", value_range)[0])


@pytest.mark.parametrize(
    "values, file_type, found, value_range",
    [
        ((GREY * 4095).astype(np.uint16), "PNG", r"values of 16 bits, 0\.\.4095", (0, 4095)),
        ((GREY * 10000).astype(np.uint16), "TIFF", r"values of 16 bits, 0\.\.10000", (0, 10000)),
        (
            (GREY * 4000 - 1000).astype(np.int16).astype(np.int32),
            "TIFF",
            r"values of 32 bits, -1000\.\.3000",
            (-1000, 3000),
        ),
        (GREY.astype(np.float32), "TIFF", r"fractions 0\.\.1", (0, 1)),
    ],
)
def test_deep_grey_needs_a_value_range_and_is_then_as_bright_as_drawn(values, file_type, found, value_range):
    picture = Image.fromarray(values)
    with pytest.raises(UserError, match=found + r".*data\.value_range.*such as \[(0|-1000), \d+\]"):
        read(picture, file_type)
    pixels = read(picture, file_type, value_range).astype(float)
    assert pixels.shape == (12, 16, 3)
    assert np.abs(pixels - GREY[..., None] * 255).max() <= 1


def test_what_lies_outside_the_range_is_cut_and_nan_is_black():
    values = np.array([[np.nan, -5, 0.5, 9]], np.float32)
    assert read(Image.fromarray(values), "TIFF", (0, 1))[0, :, 0].tolist() == [0, 0, 128, 255]


def test_the_full_range_of_16_bits_needs_no_declaration():
    values = (GREY * 65535).astype(np.uint16)
    np.testing.assert_array_equal(read(Image.fromarray(values), "PNG")[..., 0], values // 257)


def test_a_pgm_file_states_its_own_maximum():
    content = b"P5\n3 1\n4095\n" + struct.pack(">3H", 0, 2048, 4095)
    image, _ = open_picture({"bytes": content, "path": None}, "x")
    assert np.asarray(image)[0, :, 0].tolist() == [0, 127, 255]


def test_a_value_range_leaves_images_of_8_bits_alone():
    values = (GREY * 255).astype(np.uint8)
    np.testing.assert_array_equal(read(Image.fromarray(values), "PNG", (0, 4095))[..., 0], values)


@pytest.mark.parametrize("value_range", [(1, 1), (2, 1), (0,), "ab", (0, float("inf"))])
def test_a_value_range_that_is_none_is_refused(value_range):
    with pytest.raises(UserError, match="value_range: found"):
        Domain.from_streets("clear", count=1, size=(8, 8)).__class__("x", LABELS, [], value_range=value_range)


def test_a_domain_hands_its_value_range_to_its_parts(tmp_path):
    for folder, values in (("images", (GREY * 1000).astype(np.uint16)), ("masks", (GREY > 0.5).astype(np.uint8))):
        (tmp_path / folder).mkdir()
        Image.fromarray(values).save(tmp_path / folder / "a.png")
    domain = Domain.from_folder(tmp_path, LABELS, value_range=(0, 1000))
    assert np.asarray(domain.select(["a"]).load(0)[0]).max() == 255
    domain.check().raise_if_bad()
    with pytest.raises(
        UserError, match=r"files that cannot be read as they are: 1\n.*a\.png: holds values of 16 bits"
    ):
        Domain.from_folder(tmp_path, LABELS).check().raise_if_bad(skip_unreadable=True)


@pytest.mark.parametrize("brightest, accepted", [(40000, True), (4095, False)])
def test_colours_of_16_bits_are_read_where_they_fill_them(brightest, accepted):
    stored = png(2, 16, 2, struct.pack(">6H", 0, 7, brightest, 9, 300, 0))
    content = {"bytes": stored.fp.getvalue(), "path": None}
    if accepted:
        assert np.asarray(open_picture(content, "x")[0])[0].tolist() == [[0, 0, brightest // 256], [0, 1, 0]]
    else:
        with pytest.raises(UserError, match="colours of 16 bits up to about 4095 of 65535"):
            open_picture(content, "x")


# --- bands and pages


def four_bands(mode, last):
    rgb = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    return rgb, Image.merge(mode, [*Image.fromarray(rgb).split(), Image.fromarray(last.astype(np.uint8))])


@pytest.mark.parametrize("mode, file_type", [("RGBA", "TIFF"), ("RGBA", "PNG"), ("CMYK", "TIFF"), ("RGBX", "TIFF")])
def test_a_fourth_band_is_refused(mode, file_type):
    _, picture = four_bands(mode, GREY * 200 + 20)
    with pytest.raises(UserError, match="holds 4 bands"):
        read(picture, file_type)


@pytest.mark.parametrize("hidden", [0, 5])
def test_an_alpha_channel_that_masks_is_dropped_and_counted(tmp_path, hidden):
    alpha = np.full((12, 16), 255)
    alpha[:hidden] = 0
    rgb, picture = four_bands("RGBA", alpha)
    for folder, content in (("images", picture), ("masks", Image.fromarray((GREY > 0.5).astype(np.uint8)))):
        (tmp_path / folder).mkdir()
        content.save(tmp_path / folder / "a.png")
    domain = Domain.from_folder(tmp_path, LABELS)
    np.testing.assert_array_equal(np.asarray(domain.load(0)[0]), rgb)
    report = domain.check()
    report.raise_if_bad()
    assert report.dropped_alpha == (hidden > 0) == ("alpha channel is dropped: 1" in str(report))


def test_a_tiff_of_more_bands_than_pillow_knows_is_named_with_them():
    tags = {254: 0, 256: 2, 257: 1, 258: (16,) * 6, 259: 1, 262: 1, 273: 8, 277: 6, 278: 1, 279: 24}
    entries = b"".join(
        struct.pack("<HHI4s", tag, 3, len(value), struct.pack("<I", 8 + 24))
        if isinstance(value, tuple)
        else struct.pack("<HHII", tag, 4, 1, value)
        for tag, value in tags.items()
    )
    pixels, depths = bytes(24), struct.pack("<6H", *tags[258])
    start = 8 + len(pixels) + len(depths)
    content = b"II*\0" + struct.pack("<I", start) + pixels + depths + struct.pack("<H", len(tags)) + entries + bytes(4)
    with pytest.raises(UserError, match=r"x: holds 6 bands of 16 bits; expected one band \(grey\), of at most 32"):
        open_picture({"bytes": content, "path": None}, "x")


def test_pages_of_an_image_are_refused():
    pages = [Image.fromarray((GREY * value).astype(np.uint8)) for value in (100, 200)]
    with pytest.raises(UserError, match="holds 2 pages or frames"):
        read(pages[0], "TIFF", save_all=True, append_images=pages[1:])


# --- what is opened at all


def test_other_formats_are_not_opened_whatever_they_are_called(tmp_path, monkeypatch):
    script = tmp_path / "street.png"
    script.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **kwargs: pytest.fail("ran Ghostscript"))
    for read_it in (open_picture, open_mask):
        with pytest.raises(UnreadableFile, match=r"street\.png: cannot be read \(no picture of the formats PNG, JPEG"):
            read_it({"bytes": None, "path": str(script)}, "x")


def test_a_large_picture_of_the_users_own_is_read(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    picture = Image.new("L", (16, 12), 7)
    assert read(picture, "PNG").max() == 7
    assert Image.MAX_IMAGE_PIXELS == 60
    monkeypatch.setattr(look, "MOST_PIXELS", 100)
    for limit in (60, 20):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(
            UserError, match="too large to be decoded at once .* cut it into tiles of at most 100 pixels"
        ):
            read(picture, "PNG")
