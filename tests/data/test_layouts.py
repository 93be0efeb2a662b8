"""Official trees of street scenes, drawn small: which pairs are found, and what their masks mean."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from deft_hf.data.layouts import LAYOUTS, load_layout
from deft_hf.data.presets import PRESETS
from deft_hf.utils.errors import UserError

ROAD, POLE, CAR = 0, 5, 13


def draw(root, *files, ids=None, size=(6, 4)):
    """Files of a tree; a mask holds `ids` from left to right in equal parts."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if ids is None:
            Image.new("RGB", size).save(path)
        else:
            Image.fromarray(np.repeat(np.array([ids], np.uint8), size[1], 0).repeat(size[0] // len(ids), 1)).save(path)


def tree(root, layout):
    """A small tree of a layout, masks with road, pole and car, and the ids of its `val` pairs."""
    if layout == "cityscapes":
        stems = ["ulm/ulm_000000_000019", "bonn/bonn_000001_000019"]
        draw(root, *[f"leftImg8bit/val/{stem}_leftImg8bit.png" for stem in stems])
        draw(root, *[f"gtFine/val/{stem}_gtFine_labelIds.png" for stem in stems], ids=[7, 17, 26])
        draw(root, *[f"gtFine/val/{stem}_gtFine_{kind}.png" for stem in stems for kind in ("color", "instanceIds")])
        draw(root, "leftImg8bit/train/ulm/ulm_000009_000019_leftImg8bit.png")
        return sorted(stems)
    if layout == "bdd100k":
        draw(root, "images/10k/val/a-1.jpg", "images/10k/val/b-2.jpg", "images/10k/test/c.jpg")
        draw(root, "labels/sem_seg/masks/val/a-1.png", "labels/sem_seg/masks/val/b-2.png", ids=[0, 5, 13])
        return ["a-1", "b-2"]
    if layout == "mapillary":
        draw(root, "validation/images/x.jpg", "training/images/y.jpg")
        draw(root, "validation/v1.2/labels/x.png", "validation/v2.0/labels/x.png", ids=[13, 45, 55])
        return ["x"]
    frames = ["00003", "00007", "12202"]
    draw(root, *[f"images/{frame}.png" for frame in frames], *["images/00001.png", "images/00005.png"])
    draw(root, *[f"labels/{frame}.png" for frame in [*frames, "00001"]], ids=[7, 17, 26])
    draw(root, "labels/00005.png", ids=[7, 17, 26], size=(12, 8))
    savemat(root / "split.mat", {"trainIds": [[1], [5], [12202]], "valIds": [[3], [7]], "testIds": [[5]]})
    return ["00003", "00007"]


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_a_tree_gives_its_pairs_and_their_classes(layout, tmp_path):
    expected = tree(tmp_path, layout)
    domain = load_layout(layout, tmp_path, PRESETS[LAYOUTS[layout].labels], "val", name="there")
    assert domain.ids == expected and domain.name == "there"
    image, classes = domain.load(0)
    assert image.size == (6, 4) and classes[0].tolist() == [ROAD, ROAD, POLE, POLE, CAR, CAR]
    with pytest.raises(UserError, match=f"split: found validate, expected one of train, val.* of the layout {layout}"):
        load_layout(layout, tmp_path, PRESETS["cityscapes"], "validate")
    with pytest.raises(UserError, match=f"is no tree of {layout}, in which .* would be"):
        load_layout(layout, tmp_path / "images", PRESETS["cityscapes"], "val")


def test_releases_with_other_folders(tmp_path):
    draw(tmp_path, "leftImg8bit_trainvaltest/leftImg8bit/train/ulm/ulm_0_1_leftImg8bit.png")
    draw(tmp_path, "gtFine_trainvaltest/gtFine/train/ulm/ulm_0_1_gtFine_labelIds.png", ids=[7])
    assert load_layout("cityscapes", tmp_path, PRESETS["cityscapes"], "train").ids == ["ulm/ulm_0_1"]
    draw(tmp_path, "seg/images/train/a-1.jpg", "training/images/y.jpg")
    draw(tmp_path, "seg/labels/train/a-1_train_id.png", "training/labels/y.png", ids=[3])
    assert load_layout("bdd100k", tmp_path, PRESETS["cityscapes_train_ids"], "train").ids == ["a-1"]
    assert load_layout("mapillary", tmp_path, PRESETS["mapillary"], "train").ids == ["y"]


def test_gtav_leaves_out_what_the_lists_and_the_sizes_do(tmp_path):
    tree(tmp_path, "gtav")
    train = load_layout("gtav", tmp_path, PRESETS["cityscapes"], "train")
    assert train.ids == ["00001"]  # 5 differs in size, 12202 is in no list
    report = train.check()
    assert report.left_out == ["00005: image 6 x 4, mask 12 x 8"] and report.pairs == 1
    assert "pairs of unequal size, left out: 1\n    00005: image" in str(report)
    report.raise_if_bad()
    assert load_layout("gtav", tmp_path, PRESETS["cityscapes"]).ids == ["00001", "00003", "00007", "12202"]
    (tmp_path / "split.mat").write_bytes(b"no mat")
    with pytest.raises(UserError, match="split.mat: cannot be read as GTA5's splits"):
        load_layout("gtav", tmp_path, PRESETS["cityscapes"], "train")
    (tmp_path / "split.mat").unlink()
    with pytest.raises(UserError, match="split.mat: no such file; it is part of GTA5's read_mapping.zip"):
        load_layout("gtav", tmp_path, PRESETS["cityscapes"], "val")


def test_presets_agree_with_cityscapes_own_table():
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    space = PRESETS["cityscapes"]
    for label in labels:
        if label.id < 0:
            continue
        assert space.ids[label.id] == (label.trainId if 0 <= label.trainId < 19 else 255), label.name
        if 0 <= label.trainId < 19:
            assert space.names[label.trainId] == label.name and space.palette[label.trainId] == label.color
    assert space.ids[34] == 255 and space.num_labels == 19


def test_every_preset_has_all_classes_once():
    names = PRESETS["cityscapes"].names
    for name, space in PRESETS.items():
        assert space.names == names
        if space.ids is not None:
            assert {train for train in space.ids.values()} == {*range(19), 255}, name
    rein, other = PRESETS["mapillary_rein"].ids, PRESETS["mapillary"].ids
    assert set(rein) == set(other) == set(range(66))
    assert {raw for raw in rein if rein[raw] != other[raw]} == {7, 8, 9, 10, 11, 14, 23, 41, 44, 46, 49}
