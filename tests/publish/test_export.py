import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, SegformerImageProcessorPil

from deft_hf.data.transforms import IMAGENET_MEAN, IMAGENET_STD, EvalTransform
from deft_hf.models.processor import segmentation_processor
from deft_hf.publish import export
from deft_hf.publish.export import export_generalized, verify_export
from tests import tiny

PLAIN = {"config.json", "model.safetensors", "preprocessor_config.json"}


def picture(height: int = 90, width: int = 121, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, len(mode)), np.uint8)
    return Image.fromarray(pixels.squeeze())


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    # Of all families this one rounds the most differently where its weights lie at odd addresses.
    model = tiny.build("mobilenet_v2")
    folder = tmp_path_factory.mktemp("run") / "final"
    export_generalized(model, folder, segmentation_processor(None, (64, 96)))
    return model, folder


@pytest.mark.parametrize("size", [(48, 64), (200, 130), None])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_processor_prepares_images_as_evaluation_does(size, mode, tmp_path):
    base = SegformerImageProcessorPil(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4], do_reduce_labels=True)
    segmentation_processor(base, size).save_pretrained(tmp_path)
    restored = AutoImageProcessor.from_pretrained(tmp_path)
    assert restored.do_reduce_labels is False
    image = picture(mode=mode)
    found = restored(images=image, return_tensors="pt")["pixel_values"][0]
    transform = EvalTransform(size, restored.image_mean, restored.image_std)
    expected = transform(image, np.zeros((90, 121), np.uint8))["pixel_values"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_processor_takes_mean_and_deviation_from_the_checkpoint():
    def statistics(base):
        processor = segmentation_processor(base, None)
        return tuple(processor.image_mean), tuple(processor.image_std)

    assert statistics(None) == (IMAGENET_MEAN, IMAGENET_STD)
    halves = SegformerImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.25] * 3)
    assert statistics(halves) == ((0.5,) * 3, (0.25,) * 3)
    assert statistics(SegformerImageProcessorPil(do_normalize=False)) == ((0.0,) * 3, (1.0,) * 3)


def test_export_is_a_plain_folder(exported):
    model, folder = exported
    assert names(folder) == PLAIN
    restored, keys = AutoModelForSemanticSegmentation.from_pretrained(folder, output_loading_info=True)
    assert type(restored) is type(model) and not any(keys.values())
    weights = restored.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_export_replaces_its_own_files_alone(tmp_path):
    processor = segmentation_processor(None, None)
    kept = {
        "checkpoint-5/model.safetensors": "c",
        "results/scores.json": "{}",
        "recipe.yaml": "r",
        "README.md": "mine",
    }
    for name, text in {**kept, "model.safetensors": "old"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    export_generalized(tiny.build("segformer"), tmp_path, processor)
    assert {name: (tmp_path / name).read_text() for name in kept} == kept
    assert names(tmp_path) == PLAIN | {"checkpoint-5", "results", "recipe.yaml", "README.md"}
    AutoModelForSemanticSegmentation.from_pretrained(tmp_path)

    export_generalized(tiny.build("segformer"), tmp_path, processor, card="# Straße")
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "# Straße"


def test_export_that_fails_leaves_what_was_there(exported, tmp_path):
    class Broken:
        def save_pretrained(self, folder):
            raise OSError("no space left on device")

    (tmp_path / "model.safetensors").write_text("good")
    with pytest.raises(OSError, match="no space"):
        export_generalized(exported[0], tmp_path, Broken())
    assert names(tmp_path) == {"model.safetensors"}
    assert (tmp_path / "model.safetensors").read_text() == "good"


def test_verify_accepts_an_export_and_leaves_the_model_alone(exported, monkeypatch):
    monkeypatch.setattr(export, "subprocess", subprocess)  # a new interpreter
    model, folder = exported
    model.train()
    randomness = torch.get_rng_state()
    facts = verify_export(folder, model, picture(mode="RGBA"))
    assert facts["max_difference"] == 0.0
    assert facts["logits_shape"] == (1, tiny.NUM_LABELS, 4, 6)
    assert facts["seconds"] > 0
    assert model.training
    assert torch.equal(randomness, torch.get_rng_state())


def test_verify_shows_a_model_images_of_a_size_that_it_takes(tmp_path):
    """As its processor leaves them they would be too large: it was scored by windows."""
    fixed, square = tiny.build("eomt"), tiny.build("dpt")
    export_generalized(fixed, tmp_path / "fixed", segmentation_processor(None, None))
    assert verify_export(tmp_path / "fixed", fixed, picture())["logits_shape"] == (1, tiny.NUM_LABELS, 8, 8)
    export_generalized(square, tmp_path / "square", segmentation_processor(None, (96, 128)))
    facts = verify_export(tmp_path / "square", square, picture(), size=(32, 32))
    assert facts["logits_shape"] == (1, tiny.NUM_LABELS, 32, 32)


def test_verify_names_the_weights_that_differ(exported):
    _, folder = exported
    other = tiny.build("mobilenet_v2")
    with torch.no_grad():
        other.segmentation_head.classifier.convolution.bias[3] += 1e-6
    with pytest.raises(RuntimeError, match=r"1 tensors differ \(segmentation_head.classifier.convolution.bias\)"):
        verify_export(folder, other, picture())


def test_verify_runs_where_deft_hf_cannot_be_imported(exported, monkeypatch):
    model, folder = exported
    for module in ("deft_hf", "deft_hf.utils.errors"):
        monkeypatch.setattr(export, "_RELOAD", export._RELOAD.replace("import copy", f"import {module}, copy", 1))
        with pytest.raises(RuntimeError, match="cannot be used without deft_hf:(.|\n)*import of deft_hf halted"):
            verify_export(folder, model, picture())
