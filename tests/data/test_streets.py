from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, SegformerForSemanticSegmentation, SegformerModel

import deft_hf
from deft_hf.data.streets import LOOKS, STREETS, draw_street
from deft_hf.data.streets.canvas import FAR, VEHICLE, Camera, Canvas, Pen
from deft_hf.utils.errors import UserError

SIZE = (72, 96)
SAME_PLACE = [look for look in LOOKS if look != "other_town"]
ENCODER = Path(deft_hf.__file__).parent / "assets" / "tiny-segformer"


def shares(look: str, seeds: range) -> np.ndarray:
    counts = [np.bincount(draw_street(look, seed, SIZE)[1].ravel(), minlength=7) for seed in seeds]
    return np.mean(counts, axis=0) / (SIZE[0] * SIZE[1])


@pytest.mark.parametrize("look", LOOKS)
def test_same_arguments_same_pixels_whatever_the_global_random_state(look):
    image, mask = draw_street(look, 5, SIZE)
    np.random.seed(1)
    random.seed(1)
    state = np.random.get_state()[1].copy()
    again, mask_again = draw_street(look, 5, SIZE)
    assert np.array_equal(image, again)
    assert np.array_equal(mask, mask_again)
    assert np.array_equal(np.random.get_state()[1], state)
    other, other_mask = draw_street(look, 6, SIZE)
    assert not np.array_equal(image, other)
    assert not np.array_equal(mask, other_mask)


def test_clear_comes_first_and_there_are_several_unseen_looks():
    assert LOOKS[0] == "clear"
    assert len(set(LOOKS)) == len(LOOKS) >= 5


@pytest.mark.parametrize("seed", [0, 3])
def test_looks_change_the_picture_but_not_what_stands_where(seed):
    drawn = {look: draw_street(look, seed, SIZE) for look in LOOKS}
    for look in SAME_PLACE[1:]:
        assert np.array_equal(drawn[look][1], drawn["clear"][1])
        assert np.abs(drawn[look][0].astype(int) - drawn["clear"][0]).mean() > 10
    assert not np.array_equal(drawn["other_town"][1], drawn["clear"][1])


@pytest.mark.parametrize("look", ["clear", "other_town"])
def test_classes_have_plausible_shares(look):
    low = (0.20, 0.02, 0.002, 0.015, 0.01, 0.18, 0.08)
    high = (0.50, 0.13, 0.04, 0.13, 0.08, 0.50, 0.30)
    share = shares(look, range(20))
    assert share.sum() == pytest.approx(1)
    assert (share > low).all(), share
    assert (share < high).all(), share


@pytest.mark.parametrize("size", [(48, 64), (33, 70), (90, 40)])
def test_size_is_height_and_width(size):
    image, mask = draw_street("clear", 1, size)
    assert image.shape == (*size, 3)
    assert mask.shape == size
    assert image.dtype == mask.dtype == np.uint8


def test_looks_do_what_their_names_say():
    drawn = {look: [draw_street(look, seed, SIZE) for seed in range(6)] for look in SAME_PLACE}

    def brightness(look: str, *classes: int) -> float:
        return float(np.mean([image[np.isin(mask, classes)].mean() for image, mask in drawn[look]]))

    def contrast(look: str, *classes: int) -> float:
        return float(np.mean([image[np.isin(mask, classes)].std() for image, mask in drawn[look]]))

    assert brightness("night", *range(6)) < brightness("dusk", *range(6)) < brightness("clear", *range(6))
    assert brightness("snow", 1) > brightness("clear", 1) + 20
    assert contrast("fog", 5) < 0.7 * contrast("clear", 5)
    assert brightness("fog", 5) > brightness("clear", 5) + 20
    assert brightness("rain", 6) < brightness("clear", 6) - 20


def test_unknown_look_is_told_which_looks_there_are():
    with pytest.raises(UserError) as error:
        draw_street("sunset", 0)
    assert "'sunset'" in str(error.value)
    assert all(look in str(error.value) for look in LOOKS)


def test_label_space_reads_the_masks():
    image, mask = draw_street("clear", 0, SIZE)
    assert STREETS.num_labels == 7
    assert STREETS.names[0] == "drivable" and STREETS.names[6] == "sky"
    assert (mask[0] >= 3).all() and mask[-1, SIZE[1] // 2] < 7
    assert STREETS.colorize(mask).shape == image.shape


@pytest.mark.parametrize("order", [("near", "far"), ("far", "near")])
def test_near_things_hide_far_ones_in_any_order_of_drawing(order):
    canvas = Canvas(40, 60, Camera(focal=50, center=30, horizon=20, eye=1.5))
    rng = np.random.default_rng(0)
    for name in order:
        z, label = (10.0, VEHICLE) if name == "near" else (20.0, FAR)
        pen = Pen(-1, 1, 0, 4 if name == "far" else 2, 50 / z)
        pen.box(-1, 0, 1, 4, (200, 0, 0))
        canvas.stand(pen.finish(rng), 0.0, z, label)
    # At z = 10 the thing covers 2 m * 50 / 10 = 10 rows down from 20 - (2 - 1.5) * 5; at z = 20, rows above it too.
    assert (canvas.label[19:26, 26:34] == VEHICLE).all()
    assert (canvas.depth[19:26, 26:34] == 10).all()
    assert (canvas.label[15:16, 28:32] == FAR).all()


def test_walls_recede_with_perspective():
    canvas = Canvas(60, 80, Camera(focal=60, center=40, horizon=30, eye=1.5))
    pen = Pen(0, 10, 0, 3, 10)
    pen.box(0, 0, 10, 3, (90, 90, 90))
    canvas.wall(pen.finish(np.random.default_rng(0)), (2.0, 5.0), (2.0, 15.0), FAR)
    columns = np.flatnonzero((canvas.label == FAR).any(0))
    assert abs(columns.min() - (40 + 60 * 2 / 15)) <= 1
    assert abs(columns.max() - (40 + 60 * 2 / 5)) <= 1
    for column in (50, 56, 62):
        z = 60 * 2 / (column + 0.5 - 40)
        rows = np.flatnonzero(canvas.label[:, column] == FAR)
        assert canvas.depth[rows, column] == pytest.approx(z, rel=1e-3)
        assert abs(len(rows) - 60 * 3 / z) <= 2


def test_shipped_encoder_loads_and_lacks_nothing_but_a_head():
    encoder, info = SegformerModel.from_pretrained(ENCODER, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    assert all(torch.isfinite(tensor).all() for tensor in encoder.state_dict().values())

    model, info = SegformerForSemanticSegmentation.from_pretrained(ENCODER, num_labels=7, output_loading_info=True)
    assert info["missing_keys"] and all(key.startswith("decode_head.") for key in info["missing_keys"])
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(model.state_dict()[f"segformer.{name}"], tensor)


def test_shipped_encoder_is_small_and_its_processor_is_that_of_the_streets():
    assert sum(file.stat().st_size for file in ENCODER.glob("*.safetensors")) < 2_000_000
    processor = AutoImageProcessor.from_pretrained(ENCODER)
    assert (processor.size["height"], processor.size["width"]) == (192, 256)
    image, _ = draw_street("clear", 0, SIZE)
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 192, 256)
    assert not processor.do_reduce_labels
