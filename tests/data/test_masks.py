"""What a mask's file says beside its pixels: each input is drawn, written, and read as it was drawn or refused."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.data.masks import as_stored
from deft_hf.utils.errors import UserError

THREE = LabelSpace(("water", "wood", "field"))
COLORS = ((10, 20, 200), (20, 90, 30), (230, 220, 90))
BY_COLOR = LabelSpace(THREE.names, colors={color: index for index, color in enumerate(COLORS)})
IDS = np.random.default_rng(7).integers(0, 3, (10, 14)).astype(np.uint8)


def stored(picture, file_type, **options):
    stream = io.BytesIO()
    picture.save(stream, file_type, **options)
    return Image.open(io.BytesIO(stream.getvalue()))


def png(width, bits, color_type, *rows):
    """A PNG of kinds that Pillow does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, len(rows), bits, color_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)))


def indexed(ids, colors):
    picture = Image.fromarray(ids).convert("L")
    picture.putpalette([channel for color in colors for channel in color])
    return picture


def reordered(order):
    """The mask of `IDS` with class i at index order[i], its palette in that order."""
    colors = [COLORS[index] for index in np.argsort(order)]
    return indexed(np.array(order, np.uint8)[IDS], colors)


def town(root, masks):
    """A domain's folder of indexed masks."""
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for index, mask in enumerate(masks):
        Image.new("RGB", mask.size).save(root / "images" / f"{index}.png")
        mask.save(root / "masks" / f"{index}.png")
    return root


# --- encoders, pages, bands


@pytest.mark.parametrize(
    "file_type, options, encoder",
    [
        ("JPEG", {"quality": 100}, "JPEG"),
        ("TIFF", {"compression": "jpeg"}, "JPEG inside a TIFF"),
        ("WEBP", {"quality": 100}, "lossy WebP"),
    ],
)
def test_lossy_masks_are_refused_by_name(file_type, options, encoder):
    mask = Image.fromarray(np.stack([IDS] * 3, -1) if file_type == "WEBP" else IDS)
    with pytest.raises(UserError, match=rf"m\.x: is compressed by {encoder}, which changes ids"):
        THREE.encode(stored(mask, file_type, **options), "m.x")


def test_a_lossy_mask_is_refused_by_the_check_and_by_loading(tmp_path):
    mask = Image.fromarray((IDS > 0).astype(np.uint8) * 255)
    (tmp_path / "masks").mkdir()
    (tmp_path / "images").mkdir()
    mask.save(tmp_path / "masks" / "a.jpg")
    Image.new("RGB", mask.size).save(tmp_path / "images" / "a.png")
    domain = Domain.from_folder(tmp_path, LabelSpace(("no", "yes"), ids={0: 0, 255: 1}))
    for read in (lambda: domain.load(0), lambda: domain.check().raise_if_bad(skip_unreadable=True)):
        with pytest.raises(UserError, match=r"a\.jpg: is compressed by JPEG"):
            read()


@pytest.mark.skipif(not features.check("webp"), reason="Pillow without WebP")
def test_a_lossless_webp_mask_is_read():
    mask = stored(Image.fromarray(np.array(COLORS, np.uint8)[IDS]), "WEBP", lossless=True)
    np.testing.assert_array_equal(BY_COLOR.encode(mask, "m"), IDS)


@pytest.mark.parametrize("file_type", ["TIFF", "GIF", "PNG"])
def test_several_pages_or_frames_are_refused(file_type):
    first, second = (Image.fromarray(ids).convert("P") for ids in (IDS, IDS[::-1].copy()))
    mask = stored(first, file_type, save_all=True, append_images=[second])
    with pytest.raises(UserError, match="holds 2 pages or frames"):
        THREE.encode(mask, "m")


def test_a_smaller_copy_of_the_first_page_is_no_page():
    small = Image.fromarray(IDS[::2, ::2].copy())
    small.encoderinfo = {"tiffinfo": {254: 1}}
    mask = stored(Image.fromarray(IDS), "TIFF", save_all=True, append_images=[small])
    np.testing.assert_array_equal(THREE.encode(mask, "m"), IDS)


def test_colours_of_16_bits_are_refused():
    row = struct.pack(">6H", 2, 1000, 0, 1, 7, 0)  # class and instance, as SYNTHIA has them
    with pytest.raises(UserError, match="colours of 16 bits.*SYNTHIA's LABELS.*grey PNG"):
        THREE.encode(png(2, 16, 2, row), "m")


def test_bands_that_pillow_drops_are_refused():
    picture = Image.fromarray(np.stack([IDS] * 3, -1))
    mask = stored(Image.merge("RGBX", [*picture.split(), Image.fromarray(IDS)]), "TIFF")
    with pytest.raises(UserError, match="bands|mode RGBX"):
        BY_COLOR.encode(mask, "m")


# --- depth and sign


@pytest.mark.parametrize(
    "bits, row, expected", [(2, bytes([0b00011011]), [0, 1, 2, 3]), (4, b"\x02\x31", [0, 2, 3, 1])]
)
def test_grey_of_few_bits_holds_ids_and_not_stretched_grey(bits, row, expected):
    space = LabelSpace(("a", "b", "c", "d"))
    assert space.encode(png(4, bits, 0, row), "m").tolist() == [expected]


@pytest.mark.parametrize(
    "content", [b"P5\n4 1\n20\n\x00\x03\x14\x07", b"P2\n4 1\n20\n0 3 20 7\n", b"P5\n4 1\n300\n\0\0\0\3\0\x14\0\7"]
)
def test_a_pgm_mask_holds_ids_and_not_stretched_grey(content):
    space = LabelSpace([f"class {index}" for index in range(21)])
    assert space.encode(Image.open(io.BytesIO(content)), "m").tolist() == [[0, 3, 20, 7]]


@pytest.mark.parametrize("value", [-1, -9999, -(2**31)])
def test_negative_ids_may_be_listed(value):
    ids = IDS.astype(np.int32)
    ids[:2] = value
    mask = stored(Image.fromarray(ids), "TIFF")
    with pytest.raises(
        UserError, match=re.escape(f"found the ids {value}") + r".*such as \{0: 0, 1: 1, " + f"{value}: 255"
    ):
        THREE.encode(mask, "m")
    train = LabelSpace(THREE.names, ids={0: 0, 1: 1, 2: 2, value: 255}).encode(mask, "m")
    assert (train[:2] == 255).all()
    np.testing.assert_array_equal(train[2:], IDS[2:])


def test_a_signed_byte_keeps_its_sign():
    ids = IDS.astype(np.int8)
    ids[0] = -1
    mask = stored(Image.fromarray(ids.view(np.uint8)), "TIFF", tiffinfo={339: 2})
    with pytest.raises(UserError, match="found the ids -1"):
        THREE.encode(mask, "m")
    listed = LabelSpace(THREE.names, ids={0: 0, 1: 1, 2: 2, -1: 0})
    expected = np.where(np.arange(10)[:, None] == 0, 0, IDS)
    np.testing.assert_array_equal(
        listed.encode(stored(Image.fromarray(ids.view(np.uint8)), "TIFF", tiffinfo={339: 2}), "m"), expected
    )


@pytest.mark.parametrize("mask", [Image.fromarray(IDS), Image.fromarray(IDS > 0)])
def test_inverted_grey_is_refused(mask):
    mask = stored(mask, "TIFF", tiffinfo={262: 0})
    assert mask.tag_v2[262] == 0
    with pytest.raises(UserError, match="WhiteIsZero"):
        THREE.encode(mask, "m")


# --- alpha


def test_a_class_in_the_alpha_channel_is_refused():
    channels = np.zeros((*IDS.shape, 4), np.uint8)
    channels[..., 3] = IDS * 100
    with pytest.raises(UserError, match=r"alpha channel \(0\.\.200\) tells pixels of one colour apart"):
        LabelSpace(THREE.names, colors={(0, 0, 0): 0}).encode(stored(Image.fromarray(channels), "PNG"), "m")


def test_transparent_pixels_of_a_colour_of_their_own_are_read_by_colour():
    channels = np.concatenate([np.array(COLORS, np.uint8)[IDS], np.where(IDS == 0, 0, 255)[..., None]], -1)
    mask = stored(Image.fromarray(channels.astype(np.uint8)), "PNG")
    np.testing.assert_array_equal(BY_COLOR.encode(mask, "m"), IDS)


# --- palettes


@pytest.mark.parametrize("file_type", ["PNG", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_an_indexed_mask_is_read_by_colour_where_colours_are_declared(file_type, order):
    np.testing.assert_array_equal(BY_COLOR.encode(stored(reordered(order), file_type), "m"), IDS)


def test_indices_far_apart_are_read_by_colour():
    colors = np.zeros((256, 3), int)
    colors[[200, 7, 31]] = COLORS
    mask = stored(indexed(np.array([200, 7, 31], np.uint8)[IDS], colors.tolist()), "PNG")
    np.testing.assert_array_equal(BY_COLOR.encode(mask, "m"), IDS)


def test_a_palette_without_the_declared_colours_is_refused():
    with pytest.raises(
        UserError, match=r"m: its palette: found the colours \(0, 0, 0\), .*labels\.colors.*labels\.ids"
    ):
        BY_COLOR.encode(stored(indexed(IDS, ((0, 0, 0), *COLORS[1:])), "PNG"), "m")


@pytest.mark.parametrize("ids", [None, {0: 0, 1: 1, 2: 2}])
def test_a_palette_that_contradicts_the_declared_one_is_refused(ids):
    space = LabelSpace(THREE.names, COLORS, ids)
    np.testing.assert_array_equal(space.encode(stored(reordered((0, 1, 2)), "PNG"), "m"), IDS)
    with pytest.raises(
        UserError, match=r"contradicts labels\.palette: index 0 is water, but has the colour .* of wood"
    ):
        space.encode(stored(reordered((2, 0, 1)), "PNG"), "m")


def test_a_colour_of_an_ignored_index_is_no_contradiction():
    # Cityscapes' group of poles has the colour of a pole and is ignored.
    space = LabelSpace(THREE.names, COLORS, {0: 0, 1: 1, 2: 2, 3: 255})
    mask = stored(indexed(np.array([[0, 1, 2, 3]], np.uint8), (*COLORS, COLORS[1])), "PNG")
    assert space.encode(mask, "m").tolist() == [[0, 1, 2, 255]]


def test_ids_and_colours_may_both_be_declared_and_must_agree():
    space = LabelSpace(THREE.names, ids={4: 0, 5: 1, 6: 2}, colors=BY_COLOR.colors)
    by_index = stored(indexed(IDS + np.uint8(4), [(9, 9, index) for index in range(7)]), "PNG")
    by_color = stored(reordered((2, 0, 1)), "PNG")
    for mask in (by_index, by_color):
        np.testing.assert_array_equal(space.encode(mask, "m"), IDS)
    shifted = [(0, 0, 0)] * 4 + [COLORS[1], COLORS[2], COLORS[0]]
    with pytest.raises(UserError, match=r"contradicts labels\.colors"):
        space.encode(stored(indexed(IDS + np.uint8(4), shifted), "PNG"), "m")


@pytest.mark.parametrize("ids", [None, {0: 0, 1: 1, 2: 2}])
def test_palettes_that_differ_from_file_to_file_are_refused(tmp_path, ids):
    folder = town(tmp_path, [reordered((0, 1, 2)), reordered((1, 0, 2))])
    domain = Domain.from_folder(folder, LabelSpace(THREE.names, ids=ids))
    with pytest.raises(UserError, match=r"masks/\d\.png: its palette is not that of the other masks.*labels\.colors"):
        domain.check().raise_if_bad()
    domain = Domain.from_folder(folder, LabelSpace(THREE.names, ids=ids))
    domain.load(0)
    with pytest.raises(UserError, match=r"1\.png: its palette is not that"):
        domain.load(1)


def test_other_colours_for_the_same_declared_ids_are_fine(tmp_path):
    masks = [indexed(IDS, COLORS), indexed(IDS, [(index, index, index) for index in range(3)])]
    declared = LabelSpace(THREE.names, ids={0: 0, 1: 1, 2: 2})
    folder = town(tmp_path, masks)
    domain = Domain.from_folder(folder, declared)
    domain.check().raise_if_bad()
    for index in range(2):
        np.testing.assert_array_equal(domain.load(index)[1], IDS)
    with pytest.raises(UserError, match=r"say in labels\.ids that the indices count"):
        Domain.from_folder(folder, THREE).check().raise_if_bad()


def test_a_mask_without_a_file_is_left_as_it_is():
    mask = Image.fromarray(IDS)
    assert as_stored(mask, "m") is mask
