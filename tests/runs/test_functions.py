"""What the commands do, as functions: typed results, and errors that name arguments."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers import AutoModelForSemanticSegmentation

from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.models.processor import segmentation_processor
from deft_hf.publish.export import export_generalized
from deft_hf.runs.environment import environment
from deft_hf.runs.evaluate import score
from deft_hf.runs.export import export, run_recipe
from deft_hf.runs.predict import predict
from deft_hf.runs.segmenter import Segmenter
from deft_hf.utils.errors import UserError
from deft_hf.utils.files import MARKER
from tests import tiny

SIZE = (40, 56)
LABELS = LabelSpace(tuple(f"LABEL_{index}" for index in range(tiny.NUM_LABELS)))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "town"
    export_generalized(tiny.build("segformer").eval(), folder, segmentation_processor(None, None))
    return folder


@pytest.fixture
def coast(tmp_path):
    """Three drawn pairs, and the folder that they are in."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "coast" / kind).mkdir(parents=True)
    for index in range(3):
        image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / "coast" / "images" / f"{index}.png")
        mask = rng.integers(0, tiny.NUM_LABELS, SIZE, np.uint8)
        Image.fromarray(mask).save(tmp_path / "coast" / "masks" / f"{index}.png")
    return tmp_path / "coast"


def test_domains_of_ones_own_are_scored(model, coast, tmp_path):
    domain = Domain.from_folder(coast, LABELS)
    segmenter = Segmenter.open(str(model))
    found = score(segmenter, unseen=[domain], name="town", pictures=tmp_path / "out", progress=False)
    right = total = 0
    for image, truth in (domain.load(index) for index in range(3)):
        right += int((segmenter.classes(image) == truth).sum())
        total += truth.size
    assert found.scores["coast"].pixel_accuracy == pytest.approx(right / total)
    assert found.scores["coast"].pixels == total and found.unreadable == {}
    assert (found.validation, found.unseen) == ([], ["coast"])
    assert "| town |" in found.table() and "LABEL_1" in found.class_tables()[0]
    assert [row[0] for row in found.examples] == ["coast"]
    assert len(list((tmp_path / "out" / "coast" / "classes").iterdir())) == 3
    with pytest.raises(UserError, match="domains: found none"):
        score(segmenter)


def test_pictures_are_segmented_and_what_cannot_be_read_is_listed(model, coast, tmp_path):
    (coast / "images" / "1.png").write_bytes(b"torn")
    found = predict(model, coast / "images", tmp_path / "out", progress=False)
    assert [item["image"] for item in found.images] == [str(coast / "images" / name) for name in ("0.png", "2.png")]
    (problem,) = found.unreadable
    assert "1.png: cannot be read" in problem
    assert found.to_dict() == json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert found.classes[1]["name"] == "LABEL_1"


def test_a_model_is_exported_and_the_result_says_how_it_was_checked(model, tmp_path):
    found = export(model, tmp_path / "half", dtype="bfloat16")
    assert found.checked["max_difference"] == 0 and found.dtype == "bfloat16" and found.which is None
    assert found.files == sorted(path.name for path in (tmp_path / "half").iterdir() if path.name != MARKER)
    assert "batchnorm_batches" not in found.to_dict() and found.to_dict()["max_difference"] == 0
    AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "half")


def test_errors_name_arguments_and_no_flags(model, coast, tmp_path):
    calls = {
        "device: found 'moon'": lambda: Segmenter.open(str(model), device="moon"),
        "out: .* lies in .*; choose another folder": lambda: predict(model, coast, coast / "out"),
        "dtype: found 'int8', expected one of float32, bfloat16, float16": lambda: export(model, "x", dtype="int8"),
        "batchnorm: found 'new', expected one of keep, reestimate": lambda: export(model, "x", batchnorm="new"),
        "recipe: .* no recipe.yaml lies in .*; name a recipe": lambda: run_recipe(model),
        "town exists already; nothing was touched": lambda: export(model, model),
    }
    for message, call in calls.items():
        with pytest.raises(UserError, match=message) as error:
            call()
        assert "--" not in str(error.value)


def test_the_environment_is_plain_data():
    facts = environment()
    assert facts["versions"]["deft_hf"] and json.loads(json.dumps(facts)) == facts
