"""Using trained models: predict, evaluate, the pipeline; models of others too."""

import json
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate
from transformers import (
    BertConfig,
    EomtImageProcessorPil,
    Mask2FormerConfig,
    MobileViTImageProcessorPil,
    SegformerConfig,
    SegformerForSemanticSegmentation,
)

import deft_hf.evaluate as evaluate
import deft_hf.predict as predict
from deft_hf import train
from deft_hf.data.labels import LabelSpace
from deft_hf.data.presets import PRESETS
from deft_hf.data.streets import STREETS
from deft_hf.models.families import FAMILIES
from deft_hf.models.opening import auto_class, open_model
from deft_hf.models.processor import segmentation_processor
from deft_hf.publish.export import export_generalized
from deft_hf.runs.predict import predict as predict_pictures
from deft_hf.runs.segmenter import Segmenter
from deft_hf.scoring.inference import sliding_window_logits
from deft_hf.utils.errors import UserError
from tests import tiny
from tests.hub import Repository
from tests.trainer.test_hub import RECIPE

TINY = {"depths": [1] * 4, "hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}


def picture(height=50, width=70, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def exported(folder, family="segformer", processor=None):
    """A model whose classes differ from pixel to pixel."""
    model = tiny.build(family).eval()
    with torch.no_grad():
        for parameter in model.decode_head.parameters() if family == "segformer" else ():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    export_generalized(model, folder, processor or segmentation_processor(None, (64, 96)))
    return model


def by_hand(model, pixels, image):
    with torch.no_grad():
        logits = model(pixels).logits
    return interpolate(logits, size=image.size[::-1], mode="bilinear", align_corners=False).argmax(1)[0].numpy()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "final"
    return exported(folder), folder


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    images = {"a": picture(), "deep/b": picture(40, 30, 1)}
    for key, image in images.items():
        image.save(tmp_path / "in" / f"{key}.png")
    return tmp_path / "in", images


def test_pictures_become_ids_colours_and_overlays(model, pictures, tmp_path, capsys):
    net, folder = model
    source, images = pictures
    picture(seed=2).convert("L").save(tmp_path / "single.jpg")
    out = tmp_path / "out"
    predict.main([str(folder), str(source), str(tmp_path / "single.jpg"), "--out", str(out), "--json"])
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert facts == json.loads((out / "predictions.json").read_text())
    assert [item["image"] for item in facts["images"]] == [
        *(str(source / f"{key}.png") for key in images),
        str(tmp_path / "single.jpg"),
    ]
    processor = segmentation_processor(None, (64, 96))
    palette = LabelSpace(tuple(f"class {index}" for index in range(tiny.NUM_LABELS))).palette
    for (key, image), item in zip(images.items(), facts["images"], strict=False):
        ids = np.asarray(Image.open(out / "classes" / f"{key}.png"))
        expected = by_hand(net, processor(images=image, return_tensors="pt")["pixel_values"], image)
        assert len(np.unique(ids)) > 1 and np.array_equal(ids, expected)
        colors = np.array(palette, np.uint8)[ids]
        assert np.array_equal(np.asarray(Image.open(out / "colors" / f"{key}.png")), colors)
        overlay = np.asarray(Image.open(out / "overlays" / f"{key}.png")).astype(int)
        assert abs(2 * overlay - colors - np.asarray(image)).max() <= 2
        shares = {f"LABEL_{index}": (ids == index).mean() for index in np.unique(ids)}
        assert item["shares"] == pytest.approx(shares) and item["height"] == image.height
        assert list(item["shares"].values()) == sorted(item["shares"].values(), reverse=True)
    assert "3 images in" in printed.err

    bare = predict_pictures(str(folder), tmp_path / "single.jpg", tmp_path / "bare", overlays=False, progress=False)
    assert sorted(path.name for path in bare.folder.iterdir() if path.is_dir()) == ["classes", "colors"]
    assert bare.pictures() == [bare.folder / "colors" / "single.png"]


@pytest.mark.parametrize("most", [0, 3000, 1 << 25])
def test_pictures_read_ahead_keep_their_order_and_their_classes(model, tmp_path, monkeypatch, most):
    """Large ones, which are read and written alone, between small ones and what is no picture."""
    _, folder = model
    monkeypatch.setattr("deft_hf.runs.predict._MOST_PIXELS", most)
    (tmp_path / "in").mkdir()
    images = {f"{index}": picture(40 + 9 * (index % 3), 50 + index, index) for index in range(6)}
    for key, image in images.items():
        image.save(tmp_path / "in" / f"{key}.png")
    (tmp_path / "in" / "2.png").write_bytes(b"nothing")
    images.pop("2")
    found = predict_pictures(str(folder), tmp_path / "in", tmp_path / "out", window=(48, 48), progress=False)
    assert [one["image"] for one in found.images] == [str(tmp_path / "in" / f"{key}.png") for key in images]
    assert len(found.unreadable) == 1
    segmenter = Segmenter.open(str(folder), window=(48, 48))
    for key, image in images.items():
        alone = segmenter.save(tmp_path / "alone", key, image, segmenter.classes(image))
        for kind, path in alone.items():
            one, other = Image.open(tmp_path / "out" / kind / f"{key}.png"), Image.open(path)
            assert one.mode == other.mode and one.tobytes() == other.tobytes() and one.info == other.info


def test_a_large_picture_is_never_held(model, tmp_path, monkeypatch):
    """Of many more rows, neither more arrays are held nor larger pictures made."""
    monkeypatch.setattr("deft_hf.runs.predict._MOST_PIXELS", 0)
    monkeypatch.setattr("deft_hf.data.png_rows._AT_ONCE", 16)
    made = []
    new = Image.core.new
    monkeypatch.setattr(Image.core, "new", lambda mode, size: made.append(size[1]) or new(mode, size))

    def peak(height):
        path, out = tmp_path / f"{height}.png", tmp_path / f"out{height}"
        picture(height, 400).save(path)
        made.clear()
        tracemalloc.start()
        predict_pictures(str(model[1]), path, out, window=(48, 400), progress=False)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found, max(made)

    peak(100)  # what is loaded once
    small, large = peak(200), peak(1000)
    assert large[0] < small[0] + 800 * 400 / 2  # not even the classes, a byte each
    assert 16 < large[1] < 100


@pytest.mark.parametrize("left", [0, 0.5])
def test_a_large_picture_that_breaks_off_leaves_no_file(model, tmp_path, monkeypatch, left):
    monkeypatch.setattr("deft_hf.runs.predict._MOST_PIXELS", 0)
    (tmp_path / "in").mkdir()
    for key in "abc":
        picture(200, 60, ord(key)).save(tmp_path / "in" / f"{key}.png")
    broken = tmp_path / "in" / "b.png"
    content = broken.read_bytes()
    place = content.index(b"IDAT") + 4 + int(left * len(content))
    broken.write_bytes(content[:place] + bytes(500) + content[place + 500 :])
    found = predict_pictures(str(model[1]), tmp_path / "in", tmp_path / "out", window=(48, 48), progress=False)
    assert len(found.images) == 2 and len(found.unreadable) == 1 and "b.png: cannot be read" in found.unreadable[0]
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert written == [f"{kind}/{key}.png" for kind in ("classes", "colors", "overlays") for key in "ac"]
    assert not [*(tmp_path / "out").glob(".partial*")]


def test_saving_draws_on_no_picture_of_others(model, tmp_path):
    segmenter, image = Segmenter.open(str(model[1])), picture()
    before, ids = image.tobytes(), segmenter.classes(image)
    segmenter.save(tmp_path, "a", image, ids)
    assert image.tobytes() == before
    assert np.array_equal(np.asarray(Image.open(tmp_path / "overlays" / "a.png")), segmenter.overlay(image, ids))
    segmenter.save(tmp_path, "b", image, ids, in_place=True)
    for kind in ("overlays", "colors"):
        assert (tmp_path / kind / "a.png").read_bytes() == (tmp_path / kind / "b.png").read_bytes()


def test_the_probabilities_of_several_views_are_averaged(model, tmp_path):
    """As `evaluate` does by `data.test_scales` and `data.test_flip`."""
    net, folder = model
    image = picture(seed=3)
    image.save(tmp_path / "it.png")
    given = [str(folder), str(tmp_path / "it.png"), "--quiet"]
    predict.main([*given, "--out", str(tmp_path / "out"), "--test-scales", "0.5,1,1.5", "--test-flip"])
    pixels = segmentation_processor(None, (64, 96))(images=image, return_tensors="pt")["pixel_values"]
    total = 0
    for scale in (0.5, 1, 1.5):
        size = (int(64 * scale), int(96 * scale))
        seen = interpolate(pixels, size=size, mode="bilinear", antialias=scale < 1) if scale != 1 else pixels
        for flip in (False, True):
            with torch.no_grad():
                logits = net(seen.flip(-1) if flip else seen).logits
            logits = interpolate(logits, size=image.size[::-1], mode="bilinear").softmax(1)
            total = total + (logits.flip(-1) if flip else logits)
    found = np.asarray(Image.open(tmp_path / "out" / "classes" / "it.png"))
    assert np.array_equal(found, total.argmax(1)[0].numpy())
    assert not np.array_equal(found, Segmenter.open(str(folder)).classes(image))
    with pytest.raises(UserError, match="test_scales: found .*, expected a list of scales above 0"):
        predict_pictures(str(folder), tmp_path / "it.png", tmp_path / "none", test_scales=[0])
    assert not (tmp_path / "none").exists()


def test_a_window_slides_over_images_of_their_own_size(model):
    net, folder = model
    image = picture(90, 130)
    window = {"window": (64, 64), "stride": (32, 48)}
    processor = segmentation_processor(None, None)
    pixels = processor(images=image, return_tensors="pt")["pixel_values"]
    assert pixels.shape[-2:] == (90, 130)
    with torch.no_grad():
        expected = sliding_window_logits(net, FAMILIES["segformer"], pixels, (90, 130), **window).argmax(1)[0]
    assert np.array_equal(Segmenter.open(str(folder), **window).classes(image), expected.numpy())
    resized = Segmenter.open(str(folder), size=(48, 80)).classes(image)
    pixels = processor(images=image.resize((80, 48), Image.Resampling.BILINEAR), return_tensors="pt")["pixel_values"]
    assert np.array_equal(resized, by_hand(net, pixels, image))


def test_models_of_others_see_the_whole_image(tmp_path):
    """Their processors may cut out the centre, which would shift every class."""
    processor = MobileViTImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    net = exported(tmp_path / "m", "mobilevit", processor)
    seen = []
    segmenter = Segmenter.open(str(tmp_path / "m"))
    segmenter.model.register_forward_pre_hook(
        lambda module, given, named: seen.append((*given, *named.values())[0].shape), with_kwargs=True
    )
    assert segmenter.classes(picture(64, 128)).shape == (64, 128)
    assert seen[0][-2:] == (64, 128) and type(net) is type(segmenter.model)


def test_a_run_has_its_own_colours(tmp_path):
    exported(tmp_path)
    colors = [[index, 0, 0] for index in range(tiny.NUM_LABELS)]
    names = [f"LABEL_{index}" for index in range(tiny.NUM_LABELS)]
    (tmp_path / "recipe.yaml").write_text(json.dumps({"data": {"labels": {"names": names, "palette": colors}}}))
    assert Segmenter.open(str(tmp_path)).palette.tolist() == colors


@pytest.mark.parametrize("name", ["streets", *PRESETS])
def test_a_run_on_named_labels_has_their_colours(name, tmp_path):
    space = STREETS if name == "streets" else PRESETS[name]
    config = {"num_labels": space.num_labels, "id2label": space.id2label, "label2id": space.label2id}
    model = SegformerForSemanticSegmentation(SegformerConfig(**{**TINY, **config}))
    export_generalized(model, tmp_path, segmentation_processor(None, (64, 96)))
    (tmp_path / "recipe.yaml").write_text(json.dumps({"data": {"labels": name}}))
    assert Segmenter.open(str(tmp_path)).palette.tolist() == [list(color) for color in space.palette]


def test_mistakes_are_one_message(model, pictures, tmp_path):
    _, folder = model
    source, _ = pictures
    (source / "torn.png").write_bytes((source / "a.png").read_bytes()[:200])
    with pytest.raises(UserError, match="1 of 3 images were left out:\n.*torn.png: cannot be read"):
        predict.main([str(folder), str(source), "--out", str(tmp_path / "out"), "--quiet"])
    assert {path.name for path in (tmp_path / "out" / "classes").rglob("*.png")} == {"a.png", "b.png"}
    for arguments, message in (
        ([str(source), "--out", str(source / "out")], "lies in .* taken for pictures"),
        ([str(source), str(source / "a.png"), "--out", "o"], "have the same name a"),
        (
            ["nowhere.png", "--out", "o"],
            "nowhere.png: found no folder and no picture; expected a file that ends in .png",
        ),
        ([str(source / "a.png"), "--out", str(tmp_path / "o"), "--device", "moon"], "device: found 'moon'"),
    ):
        with pytest.raises(UserError, match=message):
            predict.main([str(folder), *arguments])
    exported(tmp_path / "checkpoint-3")
    with pytest.raises(UserError, match="checkpoint-3 is damaged: it has no manifest.json"):
        Segmenter.open(str(tmp_path / "checkpoint-3"))
    with pytest.raises(UserError, match="cannot be read .*Give a Hub name that can be reached"):
        open_model(str(tmp_path / "nothing"))
    tiny.build("segformer").segformer.save_pretrained(tmp_path / "backbone")
    with pytest.raises(UserError, match="lacks .* tensors of a SegformerForSemanticSegmentation.*Fine-tune it first"):
        open_model(str(tmp_path / "backbone"))
    with pytest.raises(UserError, match="a bert model is no semantic segmentation model"):
        auto_class(BertConfig())
    assert auto_class(Mask2FormerConfig()).__name__ == "AutoModelForUniversalSegmentation"


def test_a_gated_model_is_called_so(hub, monkeypatch):
    hub.repositories["lab/gated"] = Repository(private=False, gated=True)
    hub.repositories["lab/gated"].branches["main"] = {"config.json": b"{}"}
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="is gated: accept its terms at https://huggingface.co/lab/gated, then log"):
        open_model("lab/gated")


@pytest.mark.parametrize("changes", [{"do_split_image": True}, {"do_pad": True}], ids=["split", "pad"])
def test_a_processor_that_cuts_images_up_or_pads_them_does_not_shift_the_classes(changes, tmp_path):
    """As those of EoMT on the Hub do; the first part was taken for the whole image."""
    square = segmentation_processor(None, (64, 64), "eomt")
    exported(tmp_path / "ours", "eomt", square)
    size = {"shortest_edge": 64, "longest_edge": 64}
    exported(tmp_path / "theirs", "eomt", EomtImageProcessorPil(size=size, **changes))
    image = picture(50, 128)
    ours, theirs = (Segmenter.open(str(tmp_path / name)).classes(image) for name in ("ours", "theirs"))
    assert np.array_equal(ours, theirs)


# ---- evaluate


@pytest.mark.usefixtures("unverified")
def test_evaluate_gives_a_run_the_scores_that_it_gave_itself(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(publish=""))
    train.main(["recipe.yaml", "training.metrics=[boundary_iou, calibration_error]", "publish.best_and_worst=true"])
    capsys.readouterr()
    further = "training.metrics=[boundary_iou, calibration_error]"
    further = [further, "publish.best_and_worst=true"]
    evaluate.main(["out", "recipe.yaml", *further, "--out", "scores", "--name", "ours", "--json"])
    facts = json.loads(capsys.readouterr().out)
    own = json.loads((tmp_path / "out" / "results" / "metrics.json").read_text())
    written = json.loads((tmp_path / "scores" / "results" / "metrics.json").read_text())
    assert written["scores"] == own["scores"] and written["data"]["unseen"] == own["data"]["unseen"]
    assert written["intervals"] == own["intervals"]
    assert written["extremes"] == own["extremes"] and [*own["extremes"]["night"]] == ["best"]
    for folder in ("out", "scores"):
        assert (tmp_path / folder / "figures" / "best_and_worst.png").is_file()
    assert "figures/best_and_worst.png" in (tmp_path / "out" / "README.md").read_text()
    assert own["intervals"]["domains"]["night"].keys() == {
        "mean_iou", "mean_accuracy", "pixel_accuracy", "mean_boundary_iou", "calibration_error"
    }  # fmt: skip
    assert len(own["scores"]["night"]["boundary_iou"]) == len(own["labels"])
    for path in ("out/README.md", "out/report.html", "out/results/table.md", "scores/results/table.md"):
        text = (tmp_path / path).read_text()
        assert "Mean boundary IoU" in text and "Calibration error" in text and "95 % bootstrap intervals" in text
    assert set(facts["scores"]) == {"val", "night"}
    files = {path.relative_to(tmp_path / "scores").as_posix() for path in (tmp_path / "scores").rglob("*.*")}
    assert {"results/table.md", "figures/panels.png"} < files
    assert sum(name.startswith("night/") for name in files) == 3
    assert "| ours |" in (tmp_path / "scores" / "results" / "table.md").read_text()

    exported(tmp_path / "other")
    evaluate.main(["other", "recipe.yaml", "--out", "more", "--no-pictures", "--quiet"])  # LABEL_0 and so on
    assert not (tmp_path / "more" / "night").exists() and capsys.readouterr().out == ""
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["id2label"]["0"] = "boat"
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="other has the classes boat, LABEL_1, .*expected the same in the same order"):
        evaluate.main(["other", "recipe.yaml", "--out", "most"])
    assert not (tmp_path / "most").exists()


def test_a_stride_that_no_window_takes_is_an_error(model, tmp_path):
    with pytest.raises(UserError, match=r"stride: found \(8, 8\) without a window"):
        Segmenter.open(str(model[1]), stride=(8, 8))
    with pytest.raises(UserError, match=r"stride \(9, 8\) does not fit window \(8, 8\)"):
        Segmenter.open(str(model[1]), window=(8, 8), stride=(9, 8))
