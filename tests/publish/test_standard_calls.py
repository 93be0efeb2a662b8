"""Exports answer transformers' standard calls: processor, model(**inputs), post-processing, pipeline; every family."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForUniversalSegmentation,
    OneFormerProcessor,
    SegformerImageProcessorPil,
    pipeline,
)

from deft_hf.data.transforms import EvalTransform
from deft_hf.models.families import FAMILIES
from deft_hf.models.opening import auto_class
from deft_hf.models.processor import segmentation_processor
from deft_hf.publish.export import export_generalized, verify_export
from deft_hf.runs.segmenter import Segmenter
from tests import tiny

BASE = SegformerImageProcessorPil(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4], do_reduce_labels=True)
# Its own post-processing scales masks to 384 x 384 before anything else, which moves borders.
DETOUR = "mask2former"
WHOLE = (*tiny.MASKS, "mobilevit")  # whose encoders give too little to tell pixels apart


def picture(height=50, width=70, mode="RGB"):
    shape = (height, width) if mode == "L" else (height, width, 3)
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, shape, np.uint8))


def varied(family):
    """A tiny model whose classes differ from pixel to pixel."""
    model = tiny.build(family).float().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and (family in WHOLE or FAMILIES[family].part_of(name) == "decoder"):
                parameter.normal_(std=0.5, generator=generator)
    return model


@pytest.fixture(scope="module", params=tiny.BUILDERS)
def exported(request, tmp_path_factory):
    model, folder = varied(request.param), tmp_path_factory.mktemp(request.param)
    export_generalized(model, folder, segmentation_processor(BASE, (64, 64), request.param))
    return request.param, model, folder


@pytest.mark.parametrize("size", [(48, 64), (200, 130), None])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("family", tiny.BUILDERS)
def test_images_are_prepared_as_evaluation_does(family, size, mode, tmp_path):
    segmentation_processor(BASE, size, family).save_pretrained(tmp_path)
    processor, image = AutoImageProcessor.from_pretrained(tmp_path), picture(90, 121, mode)
    assert type(processor).__name__ == FAMILIES[family].processor
    found = processor(images=image, return_tensors="pt")["pixel_values"][0]
    transform = EvalTransform(size, BASE.image_mean, BASE.image_std)
    expected = transform(image, np.zeros((90, 121), np.uint8))["pixel_values"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert getattr(processor, "do_reduce_labels", False) is False


def test_the_name_in_the_file_is_that_of_both_backends(exported):
    family, _, folder = exported
    name = json.loads((folder / "preprocessor_config.json").read_text())["image_processor_type"]
    assert name == FAMILIES[family].processor.removesuffix("Pil")


def test_post_processing_gives_the_classes_of_evaluation_at_the_size_of_the_image(exported):
    family, _, folder = exported
    processor, image = AutoImageProcessor.from_pretrained(folder), picture()
    if family == "oneformer":
        processor = OneFormerProcessor.from_pretrained(folder)
        inputs = processor(images=image, task_inputs=["semantic"], return_tensors="pt")
    else:
        inputs = processor(images=image, return_tensors="pt")
    segmenter = Segmenter.open(str(folder))
    model = auto_class(segmenter.model.config).from_pretrained(folder).eval()
    with torch.no_grad():
        outputs = model(**inputs)
    (found,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(50, 70)])
    expected = segmenter.classes(image)
    assert found.shape == (50, 70)
    assert (found.numpy() == expected).mean() > (0.8 if family == DETOUR else 0.999)


def test_the_pipeline_gives_the_classes_of_evaluation(exported):
    family, _, folder = exported
    image, expected = picture(), Segmenter.open(str(folder)).classes(picture())
    found = pipeline("image-segmentation", str(folder))(image, subtask="semantic")
    ids = np.full(expected.shape, -1)
    for item in found:
        assert item["mask"].size == image.size
        ids[np.asarray(item["mask"]) > 0] = int(item["label"].removeprefix("LABEL_"))
    assert (ids == expected).mean() > (0.8 if family == DETOUR else 0.999)


def test_the_models_differ_from_pixel_to_pixel(exported):
    family, _, folder = exported
    classes = np.unique(Segmenter.open(str(folder)).classes(picture()))
    assert len(classes) > (0 if family == "mobilevitv2" else 1)  # whose random weights say the same everywhere


def test_maskformer_can_be_called_and_trained_on(tmp_path):
    """Its auxiliary loss wants all hidden states, which the export's config asks for; the model's own does not."""
    model = tiny.build("maskformer").eval()
    assert model.config.use_auxiliary_loss and not model.config.output_hidden_states
    export_generalized(model, tmp_path, segmentation_processor(None, (64, 64), "maskformer"))
    assert not model.config.output_hidden_states
    again = AutoModelForUniversalSegmentation.from_pretrained(tmp_path)
    items = tiny.with_masks(tiny.batch())
    again(
        items["pixel_values"],
        mask_labels=[m.float() for m in items["mask_labels"]],
        class_labels=items["class_labels"],
    ).loss.backward()


@pytest.mark.parametrize("family", ["mask2former", "oneformer", "eomt"])
def test_exports_with_a_segformer_processor_still_open(family, tmp_path):
    """As earlier versions wrote them."""
    model = varied(family)
    export_generalized(model, tmp_path / "new", segmentation_processor(None, (64, 64), family))
    export_generalized(model, tmp_path / "old", segmentation_processor(None, (64, 64)))
    assert verify_export(tmp_path / "old", model, picture())["max_difference"] == 0
    old, new = (Segmenter.open(str(tmp_path / name)).classes(picture()) for name in ("old", "new"))
    assert np.array_equal(old, new)
