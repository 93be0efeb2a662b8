"""Official trees, drawn small with every raw id: which pairs are found, and what each id means."""

from __future__ import annotations

import json
import re
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from deft_hf.data.class_index import ClassIndex
from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.data.layouts import LABELS, LAYOUTS, load_layout, read_as, recognise
from deft_hf.data.presets import PRESETS
from deft_hf.data.spaces import CITYSCAPES, STREET7, SYNTHIA16
from deft_hf.publish.terms import DATA
from deft_hf.utils.errors import UserError

# ---- figures of the official tables: by raw id its train id, 255 where it is ignored

NINETEEN = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_IDS = dict.fromkeys(range(34), 255) | {raw: train for train, raw in enumerate(NINETEEN)}
TRAIN_IDS = {raw: raw for raw in range(19)} | {255: 255}
# Read by RobustNet and HRDA.
SYNTHIA = dict.fromkeys(range(23), 255) | dict(
    ((1, 10), (2, 2), (3, 0), (4, 1), (5, 4), (6, 8), (7, 5), (8, 13), (9, 7), (10, 11), (11, 18), (12, 17))
    + ((15, 6), (16, 9), (17, 12), (18, 14), (19, 15), (20, 16), (21, 3))
)
# IDD's helpers/anue_labels.py: csTrainId, level3Id and level1Id of ids 0 to 39.
IDD = [0, 255, 255, 1, 255, 9, 11, 255, 12, 17, 18, 255, 13, 14, 15, 255, 255, 16, 255, 255, 3, 4, 255, 255, 7, 6, 5]
IDD += [255, 255, 2, 255, 255, 8, 10, *[255] * 6]
IDD_LEVEL3 = [0, 1, 1, 2, 3, 3, 4, 4, 5, 6, 7, 8, 9, 10, 11, 12, 12, 12, 12, 13, 14, 15, 16, 17, 18, 19, 20, 20, 21]
IDD_LEVEL3 += [22, 23, 23, 24, 25, 25, *[255] * 5]
IDD_LEVEL1 = [0] * 3 + [1] * 3 + [2] * 3 + [3] * 10 + [4] * 10 + [5] * 4 + [6] * 2 + [255] * 5
IDD_NAMES = (
    "road,parking,drivable fallback,sidewalk,rail track,non-drivable fallback,person,animal,rider,motorcycle,bicycle,"
    "autorickshaw,car,truck,bus,caravan,trailer,train,vehicle fallback,curb,wall,fence,guard rail,billboard,"
    "traffic sign,traffic light,pole,polegroup,obs-str-bar-fallback,building,bridge,tunnel,vegetation,sky,"
    "fallback background,unlabeled,ego vehicle,rectification border,out of roi,license plate"
).split(",")
MAPILLARY = dict.fromkeys(range(66), 255) | {
    raw: train
    for train, ids in enumerate(
        ([13, 24, 41], [2, 15], [17], [6], [3], [45, 47], [48], [50], [30], [29], [27], [19], [20, 21, 22], [55])
        + ([61], [54], [58], [57], [52])
    )
    for raw in ids
}
REIN = {7: 0, 8: 0, 10: 0, 14: 0, 23: 0, 9: 1, 11: 1, 44: 5, 46: 7, 49: 7, 41: 255}
# Ids of v2.0 by the same rule.
MAPILLARY_V2 = dict.fromkeys(range(124), 255) | {
    raw: train
    for train, ids in enumerate(
        ([21, *range(35, 45), *range(46, 56), 57, 58, 74], [4, 24], [27], [12], [5], [85, 88], [*range(90, 96)])
        + ([99, 100, 101, 103], [64], [63], [61], [30, 31], [32, 33, 34], [108], [114], [107], [111], [110], [105])
    )
    for raw in ids
}
# The "cs_name" of each id in WildDash's unified label policy.
WILDDASH = dict.fromkeys(range(81), 255) | {raw: train for raw, train in CITYSCAPES_IDS.items()}
WILDDASH |= {34: 14, 35: 13, 45: 5, 46: 5, 47: 12, 48: 12, 49: 12, 56: 3, 58: 17, 78: 9}
WILDDASH |= dict.fromkeys([38, 41, 43, 61, 64, 70, 74, 75, 76, 79], 0) | dict.fromkeys([52, 65, 77, 80], 1)
ELEVEN = "Sky Building Pole Road Pavement Tree SignSymbol Fence Car Pedestrian Bicyclist".split()
CAMVID = {
    (64, 128, 64): 9, (192, 0, 128): 1, (0, 128, 192): 10, (0, 128, 64): 1, (128, 0, 0): 1, (64, 0, 128): 8,
    (64, 0, 192): 9, (192, 128, 64): 9, (192, 192, 128): 2, (64, 64, 128): 7, (128, 0, 192): 3, (192, 0, 64): 3,
    (128, 128, 64): 6, (192, 0, 192): 10, (128, 64, 64): 8, (64, 192, 128): 4, (64, 64, 0): 9, (128, 64, 128): 3,
    (128, 128, 192): 4, (0, 0, 192): 4, (192, 128, 128): 6, (128, 128, 128): 0, (64, 128, 192): 8, (0, 0, 64): 2,
    (0, 64, 64): 6, (192, 64, 128): 8, (128, 128, 0): 5, (192, 128, 192): 8, (64, 0, 64): 1, (192, 192, 0): 5,
    (0, 0, 0): 255, (64, 192, 0): 1,
}  # fmt: skip
ISPRS = {(255, 255, 255): 0, (0, 0, 255): 1, (0, 255, 255): 2, (0, 255, 0): 3, (255, 255, 0): 4, (255, 0, 0): 5}
ISPRS |= {(0, 0, 0): 255}
SHIFTED = {0: 255} | {raw: raw - 1 for raw in range(1, 151)}


# ---- drawing


def image(path, count):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (count, 2)).save(path)


def ids(path, raw):
    """A grey mask with each id in a column."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array([raw, raw], np.uint8)).save(path)


def indexed(path, raw):
    ids(path, raw)
    picture = Image.open(path).copy()
    picture.putpalette(b"".join(bytes([index, 255 - index, index * 7 % 256]) for index in range(256)))
    picture.save(path)


def colors(path, raw):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array([raw, raw], np.uint8)).save(path)


def deep(path, raw, channels=3):
    """A PNG of 16 bits with ids in its first channel and instances of two bytes in the others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((2, len(raw), channels), 0x1234, ">u2")
    pixels[..., 0] = raw
    path.write_bytes(png16(pixels))


def png16(pixels):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def polygons(path, raw):
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes = [{"label": IDD_NAMES[key], "deleted": 0, "polygon": [[at, 0], [at, 1]]} for at, key in enumerate(raw)]
    path.write_text(json.dumps({"imgHeight": 2, "imgWidth": len(raw), "objects": shapes}))


def panoptic(path, raw):
    """Segments of numbers of three bytes, whose categories stand in panoptic.json."""
    segments = [70000 + 301 * place for place in range(len(raw))]
    colors(path, [(number & 255, number >> 8 & 255, number >> 16) for number in segments])
    parts = [{"id": number, "category_id": key} for number, key in zip(segments, raw, strict=True)]
    content = {"annotations": [{"file_name": path.name, "segments_info": parts}]}
    (path.parents[1] / "panoptic.json").write_text(json.dumps(content))


@dataclass
class Case:
    """A tree of one pair: its files, the id of the pair, what masks hold, and by classes what that means."""

    layout: str
    split: str | None
    image: str
    mask: str
    key: str
    meaning: dict
    classes: str = "cityscapes"
    draw: object = ids
    condition: str | None = None
    others: dict = field(default_factory=dict)


def at(layout, split, image, mask, key, meaning, *more, **rest):
    return Case(layout, split, image, mask, key, meaning, *more, **rest)


GO = "GOPR0475/GOPR0475_frame_000041"
ULM = "ulm/ulm_000000_000019"
CASES = [
    at("cityscapes", "val", f"leftImg8bit/val/{ULM}_leftImg8bit.png", f"gtFine/val/{ULM}_gtFine_labelIds.png", ULM,
       CITYSCAPES_IDS),
    at("cityscapes", "train", f"leftImg8bit_trainvaltest/leftImg8bit/train/{ULM}_leftImg8bit.png",
       f"gtFine_trainvaltest/gtFine/train/{ULM}_gtFine_labelTrainIds.png", ULM, TRAIN_IDS),
    at("foggy_cityscapes", "val", f"leftImg8bit_foggy/val/{ULM}_leftImg8bit_foggy_beta_0.02.png",
       f"gtFine/val/{ULM}_gtFine_labelIds.png", f"beta_0.02/{ULM}", CITYSCAPES_IDS, condition="beta_0.02"),
    at("bdd100k", "val", "images/10k/val/a-1.jpg", "labels/sem_seg/masks/val/a-1.png", "a-1", TRAIN_IDS),
    at("bdd100k", "train", "seg/images/train/a-1.jpg", "seg/labels/train/a-1_train_id.png", "a-1", TRAIN_IDS),
    at("urbansyn", None, "rgb/rgb_0001.png", "ss/ss_0001.png", "0001", TRAIN_IDS | {19: 255}),
    at("gtav", None, "images/00003.png", "labels/00003.png", "00003", CITYSCAPES_IDS | {34: 255}, draw=indexed),
    at("synthia", None, "RGB/0000001.png", "GT/LABELS/0000001.png", "0000001", SYNTHIA, draw=deep),
    at("synthia", None, "RAND_CITYSCAPES/RGB/1.png", "RAND_CITYSCAPES/GT/LABELS/1.png", "1",
       {raw: (255 if raw in (0, 13, 14, 16, 18, 20, 22) else SYNTHIA16.names.index(CITYSCAPES.names[train]))
        for raw, train in SYNTHIA.items()}, "synthia16", draw=deep),
    at("acdc", "train", f"rgb_anon/fog/train/{GO}_rgb_anon.png", f"gt/fog/train/{GO}_gt_labelIds.png", f"fog/{GO}",
       CITYSCAPES_IDS, condition="fog"),
    at("acdc", "val", f"rgb_anon/snow/val/{GO}_rgb_anon.png", f"gt/snow/val/{GO}_gt_labelTrainIds.png", f"snow/{GO}",
       TRAIN_IDS, condition="snow"),
    at("dark_zurich", "val", f"rgb_anon/val/night/{GO}_rgb_anon.png", f"gt/val/night/{GO}_gt_labelTrainIds.png",
       f"night/{GO}", TRAIN_IDS),
    at("nighttime_driving", "test", "leftImg8bit/test/night/0_leftImg8bit.png",
       "gtCoarse_daytime_trainvaltest/test/night/0_gtCoarse_labelIds.png", "0", CITYSCAPES_IDS),
    at("idd", "val", "leftImg8bit/val/12/000345_leftImg8bit.png", "gtFine/val/12/000345_gtFine_polygons.json",
       "12/000345", dict(enumerate(IDD)), draw=polygons),
    at("idd", "train", "idd20kII/leftImg8bit/train/2/frame7_leftImg8bit.jpg",
       "idd20kII/gtFine/train/2/frame7_gtFine_polygons.json", "2/frame7", dict(enumerate(IDD_LEVEL3)), "idd26",
       draw=polygons),
    at("idd", "val", "leftImg8bit/val/1/0_leftImg8bit.png", "gtFine/val/1/0_gtFine_polygons.json", "1/0",
       dict(enumerate(IDD_LEVEL1)), "street7", draw=polygons),
    at("mapillary", "val", "validation/images/x.jpg", "validation/v1.2/labels/x.png", "x", MAPILLARY, draw=indexed),
    at("mapillary", "train", "training/images/x.jpg", "training/labels/x.png", "x",
       {raw: raw for raw in range(65)} | {65: 255}, "mapillary65", draw=indexed),
    at("mapillary_v2", "val", "validation/images/x.jpg", "validation/v2.0/labels/x.png", "x", MAPILLARY_V2,
       draw=indexed),
    at("mapillary_v2", "val", "validation/images/x.jpg", "validation/v2.0/labels/x.png", "x",
       {raw: raw for raw in range(123)} | {123: 255}, "mapillary123", draw=indexed),
    at("camvid", None, "701_StillsRaw_full/0001TP_1.png", "LabeledApproved_full/0001TP_1_L.png", "0001TP_1", CAMVID,
       "camvid11", draw=colors),
    at("camvid", "val", "val/0001TP_1.png", "val_labels/0001TP_1_L.png", "0001TP_1",
       dict(zip(CAMVID, [*range(30), 255, 30], strict=True)), "camvid31", draw=colors),
    at("camvid_segnet", "test", "test/0001TP_1.png", "testannot/0001TP_1.png", "0001TP_1",
       {raw: raw for raw in range(11)} | {11: 255}, "camvid11"),
    at("wilddash2", None, "images/zz0_1.jpg", "panoptic/zz0_1.png", "zz0_1", WILDDASH, draw=panoptic),
    at("wilddash2", None, "images/zz0_1.jpg", "labels/zz0_1.png", "zz0_1", WILDDASH),
    at("loveda", "val", "Val/Rural/images_png/7.png", "Val/Rural/masks_png/7.png", "rural/7",
       {raw: SHIFTED[raw] for raw in range(8)}, "loveda", condition="rural"),
    at("potsdam", "test", "2_Ortho_RGB/top_potsdam_2_13_RGB.tif", "5_Labels_all/top_potsdam_2_13_label.tif",
       "top_potsdam_2_13", ISPRS, "isprs", draw=colors),
    at("vaihingen", "train", "top/top_mosaic_09cm_area1.tif", "gts_for_participants/top_mosaic_09cm_area1.tif",
       "top_mosaic_09cm_area1", ISPRS, "isprs", draw=colors),
    at("voc", None, "JPEGImages/2007_1.jpg", "SegmentationClass/2007_1.png", "2007_1",
       {raw: raw for raw in range(21)} | {255: 255}, "voc", draw=indexed),
    at("ade20k", "val", "images/validation/A_1.jpg", "annotations/validation/A_1.png", "A_1", SHIFTED, "ade20k"),
]  # fmt: skip


def plant(case, root):
    raw = [*case.meaning]
    image(root / case.image, len(raw))
    case.draw(root / case.mask, raw)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.layout}-{case.classes}-{case.split}")
def test_a_tree_gives_its_pairs_and_every_id_its_class(case, tmp_path):
    plant(case, tmp_path)
    domain = load_layout(case.layout, tmp_path, case.classes, case.split, "there", case.condition)
    assert domain.ids == [case.key] and domain.name == "there"
    assert domain.labels.names == read_as(LAYOUTS[case.layout].labels, case.classes).names
    picture, found = domain.load(0)
    assert picture.size == (len(case.meaning), 2)
    assert dict(zip(case.meaning, found[0].tolist(), strict=True)) == case.meaning
    assert domain.select([0]).load(0)[1].tolist() == found.tolist()
    report = domain.check()
    report.raise_if_bad()
    counted = ClassIndex.of(domain, None).pixels[0].tolist()
    assert counted == [int((found == train).sum()) for train in range(domain.labels.num_labels)]


def test_every_layout_is_drawn_above():
    assert {case.layout for case in CASES} == set(LAYOUTS)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_a_layout_says_what_it_looked_for_and_what_is_there(layout, tmp_path):
    spec = LAYOUTS[layout]
    split = next(iter(spec.splits), None)
    with pytest.raises(UserError, match=f"split: found validate, expected .* of the layout {layout}"):
        load_layout(layout, tmp_path, split="validate")
    (tmp_path / "pictures").mkdir()
    looked_for = spec.at(split)[0][0]
    with pytest.raises(UserError) as caught:
        load_layout(layout, tmp_path, split=split)
    text = str(caught.value)
    assert f"is no tree of {layout}, in which {looked_for.images}" in text and "\n" not in text
    assert "found pictures; give the folder above them" in text and spec.url in text
    assert DATA[layout].url == spec.url and len(text) < 600


def test_a_tree_of_another_data_set_is_named(tmp_path):
    plant(CASES[0], tmp_path)
    with pytest.raises(UserError, match="; it looks like a tree of cityscapes: say layout: cityscapes$"):
        load_layout("acdc", tmp_path, split="val")
    plant(next(case for case in CASES if case.layout == "idd" and case.classes == "street7"), tmp_path / "idd")
    wanted = (
        "gtFine/val without a file .*_gtFine_labelIds.* .it has 0_gtFine_polygons.json.*a tree of idd: say layout: idd"
    )
    with pytest.raises(UserError, match=wanted):
        load_layout("cityscapes", tmp_path / "idd", split="val")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.layout}-{case.classes}-{case.split}")
def test_a_tree_is_recognised(case, tmp_path):
    plant(case, tmp_path)
    ask = {"gtav": "split.mat", "mapillary": "config.json", "wilddash2": "panoptic.json"}
    if case.layout in ask:
        (tmp_path / ask[case.layout]).touch()
    # Without its weather a name says nothing; VOC looks like the exports of annotation tools.
    partial = case.condition is not None or case.layout == "voc"
    assert recognise(tmp_path) == (None if partial else case.layout)


def test_conditions_are_chosen_or_all_taken(tmp_path):
    for name in ("fog", "night", "rain", "snow"):
        image(tmp_path / f"rgb_anon/{name}/val/{GO}_rgb_anon.png", 2)
        ids(tmp_path / f"gt/{name}/val/{GO}_gt_labelIds.png", [7, 26])
    assert load_layout("acdc", tmp_path, split="val").ids == [f"{name}/{GO}" for name in LAYOUTS["acdc"].conditions]
    assert load_layout("acdc", tmp_path, split="val", condition="rain").ids == [f"rain/{GO}"]
    with pytest.raises(
        UserError, match="condition: found sun, expected one of fog, night, rain, snow of the layout acdc"
    ):
        load_layout("acdc", tmp_path, split="val", condition="sun")
    with pytest.raises(UserError, match="condition: found fog, but the layout gtav has none; remove it"):
        load_layout("gtav", tmp_path, condition="fog")
    assert recognise(tmp_path) == "acdc"
    (tmp_path / f"gt/rain/val/{GO}_gt_labelIds.png").unlink()
    with pytest.raises(
        UserError, match="gt/rain/val without a file .*; name the condition that is there: fog, night, snow"
    ):
        load_layout("acdc", tmp_path, split="val")


def test_links_are_followed(tmp_path):
    plant(CASES[0], tmp_path / "store")
    for kind in ("leftImg8bit", "gtFine"):
        (tmp_path / "tree" / kind / "val").mkdir(parents=True)
        (tmp_path / "tree" / kind / "val" / "ulm").symlink_to(tmp_path / "store" / kind / "val" / "ulm")
    assert load_layout("cityscapes", tmp_path / "tree", split="val").ids == [ULM]


def test_a_tree_without_splits_is_not_taken_for_one(tmp_path):
    plant(next(case for case in CASES if case.layout == "camvid"), tmp_path)
    assert len(load_layout("camvid", tmp_path)) == 1 and recognise(tmp_path) == "camvid"
    with pytest.raises(
        UserError, match=r"in which val/\* with val_labels/\*_L\* would be; found 701_StillsRaw_full, Labe"
    ):
        load_layout("camvid", tmp_path, split="val")


# ---- splits that are lists


def gtav(root):
    frames = ["00003", "00007", "12202", "00001", "00005"]
    for frame in frames:
        image(root / f"images/{frame}.png", 3)
        ids(root / f"labels/{frame}.png", [7, 17, 26, 11] if frame == "00005" else [7, 17, 26])
    savemat(root / "split.mat", {"trainIds": [[1], [5], [12202]], "valIds": [[3], [7], [9]], "testIds": [[5]]})


def test_gtav_leaves_out_what_the_lists_and_the_sizes_do(tmp_path):
    gtav(tmp_path)
    train = load_layout("gtav", tmp_path, PRESETS["cityscapes"], "train")
    assert train.ids == ["00001"]  # 5 differs in size, 12202 is in no list
    report = train.check()
    assert report.left_out == ["00005: image 3 x 2, mask 4 x 2"] and report.pairs == 1
    assert "pairs of unequal size, left out: 1\n    00005: image" in str(report)
    report.raise_if_bad()
    validation = load_layout("gtav", tmp_path, split="val")
    assert validation.ids == ["00003", "00007"]
    assert validation.check().notes == ["pairs of the split val that are not there: 1: 00009"] and not report.notes
    assert load_layout("gtav", tmp_path).ids == ["00001", "00003", "00007", "12202"]
    with pytest.raises(
        UserError, match=r"no pair is left \(00005: image 3 x 2, mask 4 x 2\); unpack the download again"
    ):
        load_layout("gtav", tmp_path, split="test")
    matrix = (tmp_path / "split.mat").read_bytes()
    savemat(tmp_path / "split.mat", {"trainIds": np.arange(1, 400)[:, None]}, do_compression=True)
    damaged = bytearray((tmp_path / "split.mat").read_bytes())
    damaged[200] ^= 255
    for content in (b"no mat", bytes(damaged), matrix[:150]):
        (tmp_path / "split.mat").write_bytes(content)
        with pytest.raises(UserError, match="split.mat: cannot be read as GTA5's splits"):
            load_layout("gtav", tmp_path, split="train")
    (tmp_path / "split.mat").unlink()
    with pytest.raises(UserError, match="split.mat: no such file; it is part of GTA5's read_mapping.zip"):
        load_layout("gtav", tmp_path, split="val")


def test_splits_of_voc_and_isprs_are_lists(tmp_path):
    for name in ("a", "b"):
        image(tmp_path / f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg", 2)
        ids(tmp_path / f"VOCdevkit/VOC2012/SegmentationClass/{name}.png", [0, 255])
    with pytest.raises(UserError, match="ImageSets.*val.txt: no such file, which lists the images of val"):
        load_layout("voc", tmp_path, split="val")
    lists = tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("b\nc\n")
    domain = load_layout("voc", tmp_path, split="val")
    assert domain.ids == ["b"] and "pairs of the split val that are not there: 1: c" in str(domain.report)
    (lists / "train.txt").write_bytes(b"a\n\xff")
    with pytest.raises(UserError, match="train.txt: cannot be read"):
        load_layout("voc", tmp_path, split="train")
    assert load_layout("voc", tmp_path).ids == ["a", "b"]
    for tile in ("2_10", "2_13", "9_9"):
        image(tmp_path / f"2_Ortho_RGB/top_potsdam_{tile}_RGB.tif", 1)
        colors(tmp_path / f"5_Labels_all/top_potsdam_{tile}_label.tif", [(0, 0, 255)])
    by_split = {split: load_layout("potsdam", tmp_path, split=split).ids for split in ("train", "test", None)}
    assert by_split["train"] == ["top_potsdam_2_10"] and by_split["test"] == ["top_potsdam_2_13"]
    assert len(by_split[None]) == 3


# ---- tables


def test_cityscapes_ids_are_those_of_its_own_scripts():
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    space = PRESETS["cityscapes"]
    for label in labels:
        if label.id >= 0:
            assert space.ids[label.id] == (label.trainId if 0 <= label.trainId < 19 else 255), label.name
        if 0 <= label.trainId < 19:
            assert space.names[label.trainId] == label.name and space.palette[label.trainId] == label.color
    assert set(space.ids) == set(range(35)) and space.ids[34] == 255 and space.num_labels == 19


@pytest.mark.parametrize("held", sorted(LABELS))
def test_a_table_has_every_class_and_reads_what_it_can_be_read_as(held):
    sizes = set()
    for name, space in LABELS[held].items():
        assert read_as(held, name) is space
        found = space.ids or space.colors or dict.fromkeys(range(space.num_labels))
        sizes.add(len(found))
        if space.ids is not None:
            missing = {*range(space.num_labels)} - {*space.ids.values()}
            assert not missing - {space.label2id.get("train")}, name
    assert len(sizes) == 1, "all of its tables have the same raw ids"
    with pytest.raises(
        UserError, match=f"labels: found mars, which masks of {held} cannot be read as, expected one of"
    ):
        read_as(held, "mars")


@pytest.mark.parametrize(
    "held", ["cityscapes", "mapillary", "mapillary_v2", "synthia", "wilddash2", "cityscapes_train_ids"]
)
def test_coarser_classes_agree_with_the_nineteen(held):
    nineteen, sixteen, seven = (LABELS[held][name] for name in ("cityscapes", "synthia16", "street7"))
    groups = {name: IDD_LEVEL1[IDD.index(train)] for train, name in enumerate(CITYSCAPES.names)}
    ids = nineteen.ids or {train: train for train in range(19)}
    for raw, train in ids.items():
        name = CITYSCAPES.names[train] if train < 19 else None
        assert sixteen.ids[raw] == SYNTHIA16.label2id.get(name, 255)
        assert name is None or seven.ids[raw] == groups[name], (raw, name)
    assert STREET7.num_labels == 7 and SYNTHIA16.num_labels == 16


def test_the_maps_of_mapillary():
    assert PRESETS["mapillary_rein"].ids == MAPILLARY | REIN
    by_name = {name: index for index, name in enumerate(LABELS["mapillary_v2"]["mapillary123"].names)}
    for name in ("Road", "Sidewalk", "Building", "Car", "Person", "Sky", "Terrain", "Bicycle", "Truck"):
        old = LABELS["mapillary"]["mapillary65"].label2id[name]
        assert PRESETS["mapillary"].ids[old] == PRESETS["mapillary_v2"].ids[by_name[name]]


def test_palettes_of_official_masks_contradict_no_table():
    for held in ("mapillary", "mapillary_rein", "mapillary_v2"):
        own = LABELS[held].get("mapillary65") or LABELS[held]["mapillary123"]
        used = dict(enumerate(own.palette))
        mask = Image.fromarray(np.array([[*used]], np.uint8))
        mask.putpalette(np.array(own.palette, np.uint8).tobytes())
        for space in LABELS[held].values():
            space.encode(mask.copy(), "x.png")


# ---- masks that are no pictures of ids


def test_all_16_bits_of_synthias_first_channel_are_read(tmp_path):
    for channels in (3, 4):
        deep(tmp_path / f"GT/LABELS/{channels}.png", [3, 259], channels)
        image(tmp_path / f"RGB/{channels}.png", 2)
    domain = load_layout("synthia", tmp_path)
    for index in range(2):
        with pytest.raises(UserError, match="found the ids 259, which labels.ids does not list"):
            domain.load(index)
    deep(tmp_path / "GT/LABELS/3.png", [3, 8])
    assert domain.load(0)[1][0].tolist() == [0, 13]
    with pytest.raises(UserError, match="of which only the upper 8 would be read.*layout: synthia"):
        Domain.from_folder(tmp_path, PRESETS["synthia"], images="RGB", masks="GT/LABELS").load(0)


def test_polygons_are_drawn_as_cityscapes_scripts_draw_them(tmp_path):
    """IDD's script is Cityscapes' with a table of its own; a table of shared names makes them comparable."""
    script = pytest.importorskip("cityscapesscripts.preparation.json2labelImg")
    annotations = pytest.importorskip("cityscapesscripts.helpers.annotation")
    ours = {name: index for index, name in enumerate(IDD_NAMES)}
    rng = np.random.default_rng(0)
    names = ["road", "car", "cargroup", "sky", "pole", "building", "polegroup", "unlabeled"]
    shapes = [
        {"label": str(rng.choice(names)), "deleted": int(rng.random() < 0.2), "polygon": points.tolist()}
        for points in (rng.uniform(-8, 48, (rng.integers(2, 9), 2)).round(rng.integers(0, 3)) for _ in range(40))
    ]
    file = tmp_path / "gtFine/val/1/0_gtFine_polygons.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"imgHeight": 30, "imgWidth": 40, "objects": shapes}))
    image(tmp_path / "leftImg8bit/val/1/0_leftImg8bit.png", 40)
    annotation = annotations.Annotation()
    annotation.fromJsonFile(str(file))
    theirs = np.asarray(script.createLabelImage(annotation, "ids"))
    table = np.zeros(256, np.uint8)
    for label in script.name2label.values():
        if label.id >= 0:
            table[label.id] = ours.get(label.name, 255)
    domain = load_layout("idd", tmp_path, split="val")
    mask, name = domain.mask_reader(domain.dataset[0], "x")
    assert np.array_equal(np.asarray(mask), table[theirs]) and name == str(file)
    assert len(np.unique(theirs)) > 4


def test_damaged_polygons_and_segments_are_one_message(tmp_path):
    case = next(case for case in CASES if case.draw is polygons)
    plant(case, tmp_path)
    for content, message in (
        ("{", "polygons.json: cannot be read"),
        ('{"imgHeight": 2}', "polygons.json: is no file of polygons .KeyError: 'imgWidth'"),
        (json.dumps({"imgHeight": 2, "imgWidth": 2, "objects": [{"label": "cow", "polygon": []}]}), "KeyError: 'cow'"),
    ):
        (tmp_path / case.mask).write_text(content)
        with pytest.raises(UserError, match=message):
            load_layout(case.layout, tmp_path, split=case.split).load(0)
    wild = next(case for case in CASES if case.draw is panoptic)
    plant(wild, tmp_path)
    file = tmp_path / "panoptic.json"
    whole = file.read_text()
    file.write_text(whole.replace(": 70000,", ': "first",'))
    with pytest.raises(UserError, match="panoptic.json: is no file of WildDash 2's panoptic labels"):
        load_layout("wilddash2", tmp_path)
    file.write_text(whole)
    image(tmp_path / "images/other.jpg", 2)
    colors(tmp_path / "panoptic/other.png", [(1, 2, 3)] * 2)
    with pytest.raises(UserError, match="panoptic.json: says nothing of other.png; unpack the download again"):
        load_layout("wilddash2", tmp_path)


# ---- ids and train ids


@pytest.mark.parametrize(
    ("name", "held", "stored", "message"),
    [
        ("a_gtFine_labelIds", [7, 26], "cityscapes", None),
        ("a", [7, 11, 8], "cityscapes", None),
        ("a", [255, 255], "cityscapes", None),
        ("a_gtFine_labelTrainIds", [0, 255], "cityscapes_train_ids", None),
        ("a_train_id", [0, 13], "cityscapes_train_ids", None),
        ("a", [0, 2, 255], "cityscapes", "its values, such as 0, 2, 255, are train ids; .*cityscapes_train_ids"),
        ("a", [0, 2, 255], "mapillary", "is read as ids, but its values"),
        (
            "a_gtFine_labelIds",
            [0, 255],
            "cityscapes",
            "its name says ids and its values.*are train ids; one of the two",
        ),
        ("a_gtFine_labelTrainIds", [0, 2], "cityscapes", "its name says train ids; name the files that hold ids"),
        (
            "a_labelTrainIds",
            [7, 26],
            "cityscapes",
            "its name says train ids and its values, such as 26, are ids; one of",
        ),
        ("a_labelIds", [0, 2], "cityscapes_train_ids", "is read as train ids, but its name says ids"),
        ("a", [7, 26], "cityscapes_train_ids", "its values, such as 26, are ids; .*labels: cityscapes"),
        ("a_labelTrainIds", [7, 26], "cityscapes_train_ids", "name says train ids and its values.*one of the two is"),
        ("a", [0, 1, 2], "streets", None),
    ],
)
def test_ids_and_train_ids_are_told_apart_by_name_and_values(name, held, stored, message):
    mask = Image.fromarray(np.array([held], np.uint8))
    space = LabelSpace(("a", "b", "c")) if stored == "streets" else PRESETS[stored]
    if message is None:
        space.encode(mask, f"there/{name}.png")
    else:
        with pytest.raises(UserError, match=f"there/{name}.png: .*{message}"):
            space.encode(mask, f"there/{name}.png")


def test_train_ids_without_an_ignored_pixel_are_seen_in_all_masks_together(tmp_path):
    for index in range(3):
        image(tmp_path / f"images/{index}.png", 4)
        ids(tmp_path / f"masks/{index}.png", [0, 1, 2, 13])
    report = Domain.from_folder(tmp_path, PRESETS["cityscapes"]).check()
    with pytest.raises(UserError, match="no mask holds an id above 13, and 75%.*labels: cityscapes_train_ids"):
        report.raise_if_bad()
    Domain.from_folder(tmp_path, PRESETS["cityscapes_train_ids"]).check().raise_if_bad()


def test_a_tree_of_both_kinds_is_read_by_its_ids(tmp_path):
    image(tmp_path / f"leftImg8bit/val/{ULM}_leftImg8bit.png", 2)
    ids(tmp_path / f"gtFine/val/{ULM}_gtFine_labelIds.png", [7, 26])
    ids(tmp_path / f"gtFine/val/{ULM}_gtFine_labelTrainIds.png", [0, 13])
    domain = load_layout("cityscapes", tmp_path, PRESETS["cityscapes"], "val")
    assert re.search("labelIds", domain.dataset[0]["mask"]["path"]) and domain.load(0)[1][0].tolist() == [0, 13]
    (tmp_path / f"gtFine/val/{ULM}_gtFine_labelIds.png").unlink()
    domain = load_layout("cityscapes", tmp_path, PRESETS["cityscapes"], "val")
    assert domain.labels == PRESETS["cityscapes_train_ids"] and domain.load(0)[1][0].tolist() == [0, 13]


def row_of(name):
    """The row of a layout in docs/data.md."""
    layout = LAYOUTS[name]
    sizes = {key: space.num_labels for key, space in LABELS[layout.labels].items()}
    classes = ", ".join(f"`{key}` ({size})" for key, size in sizes.items())
    choices = ", ".join(layout.splits) or "–"
    if layout.conditions:
        choices += "; " + ", ".join(layout.conditions)
    places = list(dict.fromkeys((place.images, place.masks, place.mask_suffix) for place in layout.places))
    images, masks, suffix = places[0]
    there = f"`{images}` with `{masks}`" + (f" (`*{suffix}*`)" if suffix else "")
    there += f", or {len(places) - 1} more" if places[1:] else ""
    return f"| `{name}` | [{layout.title}]({layout.url}), {layout.terms} | {classes} | {choices} | {there} |"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_documentation_lists_every_layout(layout):
    text = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
    assert row_of(layout) in text.splitlines(), row_of(layout)
