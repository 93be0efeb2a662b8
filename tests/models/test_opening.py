"""Models from elsewhere: a repository's code and pickles never run by themselves, and nothing is asked."""

import json
import os

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import SegformerImageProcessorPil

from deft_hf.data.labels import LabelSpace
from deft_hf.models.opening import open_model, read_config
from deft_hf.models.pretrained import open_pretrained
from deft_hf.models.processor import open_processor, segmentation_processor
from deft_hf.publish.export import export_generalized
from deft_hf.runs.export import export
from deft_hf.runs.segmenter import Segmenter
from deft_hf.utils.errors import UserError
from tests import tiny
from tests.hub import Repository

LABELS = LabelSpace([f"class {index}" for index in range(tiny.NUM_LABELS)])
CODE = """
import os, torch
open(os.environ["RAN"], "a").write("ran\\n")
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput

class Config(PreTrainedConfig):
    model_type = "house"

class Model(PreTrainedModel):
    config_class = Config
    def __init__(self, config):
        super().__init__(config)
        self.body = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.head = torch.nn.Conv2d(4, config.num_labels, 1)
        self.post_init()
    def forward(self, pixel_values, **kwargs):
        return SemanticSegmenterOutput(logits=self.head(self.body(pixel_values)))
"""


@pytest.fixture
def coded(tmp_path, monkeypatch):
    """The folder of a model that only its own code can open, and the file that this code writes to."""
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user was asked"))
    folder = tmp_path / f"house{os.getpid()}"
    folder.mkdir()
    names = {index: f"class {index}" for index in range(tiny.NUM_LABELS)}
    code = {"AutoConfig": "house.Config", "AutoModelForSemanticSegmentation": "house.Model"}
    facts = {"model_type": "house", "auto_map": code, "architectures": ["Model"], "id2label": names}
    (folder / "config.json").write_text(json.dumps(facts))
    (folder / "house.py").write_text(CODE)
    generator = torch.Generator().manual_seed(0)
    shapes = {"body.weight": (4, 3, 3, 3), "body.bias": (4,), "head.weight": (7, 4, 1, 1), "head.bias": (7,)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    segmentation_processor(None, (32, 32)).save_pretrained(folder)
    return str(folder), tmp_path / "ran"


@pytest.mark.parametrize(
    "open_it",
    [
        open_model,
        Segmenter.open,
        lambda name: open_pretrained(name, LABELS),
        lambda name: export(name, f"{name}-exported"),
    ],
    ids=["model", "predict", "train", "export"],
)
def test_code_of_a_repository_is_not_run_and_nothing_is_asked(open_it, coded):
    folder, ran = coded
    with pytest.raises(UserError, match=r"house.Config, house.Model.* is not run.*trust_remote_code: true"):
        open_it(folder)
    assert not ran.exists()


def test_a_backbone_is_of_transformers_own_code(coded):
    folder, ran = coded
    with pytest.raises(UserError, match="of type house, of which transformers has no backbone class"):
        open_pretrained(folder, LABELS, head="upernet")
    assert not ran.exists()


def test_a_processor_of_own_code_is_not_run_but_its_statistics_are_taken(coded):
    folder, ran = coded
    facts = {"auto_map": {"AutoImageProcessor": "house.Processor"}, "image_mean": [0.1] * 3, "image_std": [0.2] * 3}
    tiny.build("segformer").save_pretrained(folder)
    with open(f"{folder}/preprocessor_config.json", "w") as file:
        json.dump({**facts, "image_processor_type": "HouseProcessor"}, file)
    with pytest.raises(UserError, match="no image processor that opens here"):
        open_processor(folder)
    start = open_pretrained(folder, LABELS)
    assert start.processor.image_mean == (0.1,) * 3 and start.processor.image_std == (0.2,) * 3
    assert not ran.exists()


def test_trusted_code_opens_predicts_and_exports(coded, tmp_path):
    folder, ran = coded
    segmenter = Segmenter.open(folder, trust_remote_code=True)
    assert ran.exists()
    assert segmenter.classes(Image.new("RGB", (40, 30))).shape == (30, 40)
    start = open_pretrained(folder, LABELS, encoder="body", trust_remote_code=True)
    assert not start.new and torch.equal(start.model.head.bias, load_file(f"{folder}/model.safetensors")["head.bias"])
    found = export(folder, tmp_path / "out", trust_remote_code=True)
    assert found.checked["max_difference"] == 0 and "house.py" in found.files


def test_code_of_the_hub_is_trusted_at_a_named_revision_alone(hub, tmp_path):
    code = {"AutoConfig": "house.Config", "AutoModelForSemanticSegmentation": "house.Model"}
    hub.repositories["lab/house"] = Repository(private=False)
    files = hub.repositories["lab/house"].branches["main"]
    files["config.json"] = json.dumps({"model_type": "house", "auto_map": code}).encode()
    with pytest.raises(UserError, match="trust_remote_code needs the revision whose code you have read"):
        read_config("lab/house", None, trust_remote_code=True)
    far = json.dumps({"model_type": "house", "auto_map": {"AutoConfig": "lab/other--house.Config"}})
    (tmp_path / "config.json").write_text(far)
    with pytest.raises(UserError, match="its code lies in another repository .lab/other--house.Config"):
        read_config(str(tmp_path), None, trust_remote_code=True)


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def test_pickled_weights_are_read_as_tensors_or_not_at_all(tmp_path):
    model = tiny.build("segformer")
    export_generalized(model, tmp_path, SegformerImageProcessorPil())
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert torch.equal(
        open_model(tmp_path).state_dict()["decode_head.classifier.bias"], model.decode_head.classifier.bias
    )
    torch.save({**tensors, "planted": Payload(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    for open_it in (open_model, lambda name: open_pretrained(str(name), LABELS)):
        with pytest.raises(UserError, match="pickle that holds more than tensors; nothing of it was run"):
            open_it(tmp_path)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04garbage")
    for open_it in (open_model, lambda name: open_pretrained(str(name), LABELS)):
        with pytest.raises(UserError):
            open_it(tmp_path)


@pytest.mark.parametrize("prefix", ["module.", "student.backbone."])
def test_weights_under_names_of_another_program_are_not_silently_left_out(prefix, tmp_path):
    export_generalized(tiny.build("upernet"), tmp_path, SegformerImageProcessorPil())
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        {prefix + name: value for name, value in tensors.items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match=r"lacks \d+ tensors of a UperNetForSemanticSegmentation, "):
        open_model(tmp_path)
    with pytest.raises(UserError, match=r"lacks \d+ tensors of the encoder, backbone\."):
        open_pretrained(str(tmp_path), LABELS)
