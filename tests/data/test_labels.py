import pickle

import numpy as np
import pytest
from PIL import Image

from deft_hf.data.labels import IGNORE_INDEX, LabelSpace
from deft_hf.utils.errors import UserError

NAMES = ("road", "car", "sky")
PALETTE = ((128, 64, 128), (0, 0, 142), (70, 130, 180))
IDS = {7: 0, 26: 1, 23: 2, 0: 255, 33: 1}


@pytest.fixture
def raw():
    return np.random.default_rng(0).choice([*IDS, IGNORE_INDEX], (13, 17)).astype(np.uint8)


def by_dictionary(raw, table):
    return np.array([[table[value] for value in row] for row in raw.tolist()], np.uint8)


def stored(image, path):
    image.save(path)
    return Image.open(path)


@pytest.mark.parametrize("dtype, mode", [(np.uint8, "L"), (np.uint16, "I;16")])
def test_grey_masks_map_by_the_dictionary(raw, tmp_path, dtype, mode):
    mask = stored(Image.fromarray(raw.astype(dtype)), tmp_path / "mask.png")
    assert mask.mode == mode
    train = LabelSpace(NAMES, PALETTE, IDS).encode(mask, "mask.png")
    assert train.dtype == np.uint8
    np.testing.assert_array_equal(train, by_dictionary(raw, IDS | {255: 255}))


def test_ids_beyond_8_bits_survive():
    ids = {0: 0, 256: 1, 65535: 2, 40000: 255}
    raw = np.array([[0, 256], [65535, 40000]])
    for dtype in (np.uint16, np.int32):
        train = LabelSpace(NAMES, ids=ids).encode(Image.fromarray(raw.astype(dtype)), "mask")
        np.testing.assert_array_equal(train, [[0, 1], [2, 255]])


@pytest.mark.parametrize("value", [-1, 65536, 70000, 2**31 - 1])
def test_ids_that_only_32_bits_hold_are_unknown(value):
    mask = Image.fromarray(np.array([[0, value]], np.int32))
    with pytest.raises(UserError, match=f"deep.tif.* {value},"):
        LabelSpace(NAMES).encode(mask, "deep.tif")


def test_palette_mask_is_read_by_index_not_by_colour(raw, tmp_path):
    mask = Image.fromarray(raw).convert("L")
    mask.putpalette([channel for index in range(256) for channel in (255 - index, index, 3)])
    mask = stored(mask, tmp_path / "mask.png")
    assert mask.mode == "P"
    np.testing.assert_array_equal(
        LabelSpace(NAMES, PALETTE, IDS).encode(mask, "mask"), by_dictionary(raw, IDS | {255: 255})
    )


def test_one_bit_mask_holds_0_and_1():
    foreground = np.random.default_rng(1).random((5, 9)) > 0.5
    np.testing.assert_array_equal(LabelSpace(("no", "yes")).encode(Image.fromarray(foreground), "mask"), foreground)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_coloured_mask_maps_by_colour(mode, tmp_path):
    colors = {(1, 2, 3): 0, (3, 2, 1): 1, (255, 255, 255): 2, (1, 2, 4): 255}
    chosen = np.random.default_rng(2).integers(0, 4, (6, 5))
    mask = stored(Image.fromarray(np.array(list(colors), np.uint8)[chosen]).convert(mode), tmp_path / "mask.png")
    train = LabelSpace(NAMES, colors=colors).encode(mask, "mask")
    np.testing.assert_array_equal(train, np.array(list(colors.values()))[chosen])


def test_encode_reads_what_colorize_paints():
    space = LabelSpace(NAMES, PALETTE)
    ids = np.random.default_rng(3).choice([0, 1, 2, 255], (7, 8)).astype(np.uint8)
    painted = space.colorize(ids)
    assert painted.dtype == np.uint8
    assert (painted[ids == 255] == 0).all() and (painted[ids == 1] == PALETTE[1]).all()
    np.testing.assert_array_equal(space.encode(Image.fromarray(painted), "mask"), ids)


def test_black_is_a_class_where_the_palette_says_so():
    mask = Image.new("RGB", (2, 2))
    assert (LabelSpace(("no", "yes"), ((0, 0, 0), (255, 255, 255))).encode(mask, "mask") == 0).all()


def test_255_is_ignored_unless_it_is_listed():
    mask = Image.fromarray(np.array([[0, 255]], np.uint8))
    assert LabelSpace(("no", "yes")).encode(mask, "mask").tolist() == [[0, 255]]
    assert LabelSpace(("no", "yes"), ids={0: 0}).encode(mask, "mask").tolist() == [[0, 255]]
    assert LabelSpace(("no", "yes"), ids={0: 0, 255: 1}).encode(mask, "mask").tolist() == [[0, 1]]


@pytest.mark.parametrize(
    "space, values, message",
    [
        (LabelSpace(NAMES), [0, 3, 33], r"a/b\.png: found the ids 3, 33, expected 0\.\.2 or 255; .*labels\.ids"),
        (LabelSpace(NAMES, ids=IDS), [7, 8], r"a/b\.png: found the ids 8, which labels\.ids does not list; give"),
        (LabelSpace(NAMES, ids={7: 0, 8: 1}), [0, 1, 2], r"found the ids 0, 1, 2, .*leave labels\.ids out"),
        (LabelSpace(NAMES), list(range(3, 30)), r"3, 4, 5, 6, 7, 8, 9, 10 and 19 more"),
        (LabelSpace(NAMES), [254], r"found the ids 254"),
    ],
)
def test_unknown_ids_are_named_with_a_way_out(space, values, message):
    with pytest.raises(UserError, match=message):
        space.encode(Image.fromarray(np.array([values], np.uint8)), "a/b.png")


def test_unknown_colours_are_named():
    with pytest.raises(UserError, match=r"m\.png: found the colours \(9, 8, 7\), which labels\.palette"):
        LabelSpace(NAMES, PALETTE).encode(Image.new("RGB", (2, 2), (9, 8, 7)), "m.png")


def test_a_mask_of_fractions_is_refused():
    with pytest.raises(UserError, match=r"m\.tif: found a mask of mode F"):
        LabelSpace(NAMES).encode(Image.new("F", (2, 2)), "m.tif")


def test_classes_of_one_colour_cannot_be_read_by_colour():
    space = LabelSpace(("a", "b"), ((1, 1, 1), (1, 1, 1)))
    assert space.encode(Image.new("L", (1, 1), 1), "m").item() == 1
    with pytest.raises(UserError, match="share a colour"):
        space.encode(Image.new("RGB", (1, 1), (1, 1, 1)), "m")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"names": ()}, "labels.names"),
        ({"names": "road"}, "labels.names"),
        ({"names": ("a", "")}, "labels.names"),
        ({"names": ("a", "b", "a")}, "names: a stands there more than once"),
        ({"names": [str(index) for index in range(255)]}, "at most 254"),
        ({"names": NAMES, "palette": PALETTE[:2]}, "palette: found 2 colours for 3 names"),
        ({"names": NAMES, "palette": ((1, 2), (1, 2, 3), (1, 2, 3))}, "three whole numbers"),
        ({"names": NAMES, "palette": ((1, 2, 256), (1, 2, 3), (1, 2, 3))}, "three whole numbers"),
        ({"names": NAMES, "ids": {}}, "labels.ids is empty"),
        ({"names": NAMES, "ids": [0, 1]}, "labels.ids.*a mapping"),
        ({"names": NAMES, "ids": {7: 3}}, r"labels\.ids: 7 maps to 3, expected a train id in 0\.\.2, or 255"),
        ({"names": NAMES, "ids": {7: -1}}, "maps to -1"),
        ({"names": NAMES, "ids": {7: True}}, "maps to True"),
        ({"names": ("nucleus",)}, r"one class, nucleus, .*\[background, nucleus\] with ids: \{0: 0, 255: 1\}"),
        ({"names": NAMES, "ids": {"7": 0}}, "raw id '7'"),
        ({"names": NAMES, "ids": {65536: 0}}, "raw id 65536"),
        ({"names": NAMES, "colors": {(0, 0, 0): 254}}, r"labels\.colors: \(0, 0, 0\) maps to 254"),
        ({"names": NAMES, "colors": {(0, 0): 0}}, "three whole numbers"),
    ],
)
def test_a_space_that_contradicts_itself_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        LabelSpace(**arguments)


def test_from_mapping_is_the_constructor():
    mapping = {"names": list(NAMES), "palette": [list(color) for color in PALETTE], "ids": IDS}
    assert LabelSpace.from_mapping(mapping) == LabelSpace(NAMES, PALETTE, IDS)
    assert LabelSpace.from_mapping({"names": list(NAMES), "colors": {"1, 2,3": 0}}).colors == {(1, 2, 3): 0}


@pytest.mark.parametrize(
    "mapping, message",
    [
        (["road"], "labels: found .* a mapping"),
        ({"names": ["a", "b"], "colours": {}}, "unknown key colours; expected names, palette, ids, colors"),
        ({"palette": [[0, 0, 0]]}, "`names` is missing"),
        ({"names": ["a", "b"], "colors": {"red": 0}}, "found the colour 'red', expected \"red, green, blue\""),
        ({"names": ["a", "b"], "colors": {3: 0}}, "labels.colors: found 3"),
    ],
)
def test_from_mapping_is_strict(mapping, message):
    with pytest.raises(UserError, match=message):
        LabelSpace.from_mapping(mapping)


def test_names_and_default_palette():
    space = LabelSpace([f"class {index}" for index in range(254)])
    assert space.num_labels == 254
    assert space.id2label[3] == "class 3" and space.label2id["class 3"] == 3
    assert len({*space.palette, (0, 0, 0)}) == 255


def test_a_used_space_travels_to_other_processes(raw):
    space = LabelSpace(NAMES, PALETTE, IDS)
    expected = space.encode(Image.fromarray(raw), "mask")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(space)).encode(Image.fromarray(raw), "mask"), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_the_rest_of_the_ids_is_one_class(dtype):
    raw = np.array([[0, 1, 254, 255], [7, 7, 0, 100]])
    if dtype != np.uint8:
        raw[0, 2] = 40000
    cells = LabelSpace.from_mapping({"names": ["background", "cell"], "ids": {0: 0, 7: 255, "rest": 1}})
    train = cells.encode(Image.fromarray(raw.astype(dtype)), "cells")
    np.testing.assert_array_equal(train, [[0, 1, 1, 1], [255, 255, 0, 1]])
    beyond = np.array([[0, 70000, 2**31 - 1, -5]], np.int32)
    np.testing.assert_array_equal(cells.encode(Image.fromarray(beyond), "cells"), [[0, 1, 1, 1]])


def test_a_word_that_is_no_id_is_refused():
    with pytest.raises(UserError, match="found the raw id 'others', expected a whole number up to 65535, or rest"):
        LabelSpace(("a", "b"), ids={0: 0, "others": 1})
