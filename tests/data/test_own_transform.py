"""A transform of the user's own: found by name, seeded by the item, checked in what it returns."""

import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader

from deft_hf.data.corruptions import corrupted
from deft_hf.data.domains import Domain
from deft_hf.data.own_transform import OwnTransform, described, load
from deft_hf.data.sampling import EvaluationSet, TrainingSet
from deft_hf.data.transforms import EvalTransform, TrainTransform
from deft_hf.utils.errors import UserError
from tests.data.annotations.exports import yolo

SOURCE = """
import random
import numpy as np
import torch

def speckle(image, mask):
    noise = np.random.normal(0, 8, image.shape) + random.random() + torch.rand(1).item()
    mask[0] = 255
    return np.clip(image + noise, 0, 255).astype(np.uint8), mask

class Darker:
    def __call__(self, image, mask):
        return image // 2, mask

darker, number = Darker(), 7
"""


@pytest.fixture
def named(tmp_path, monkeypatch, request):
    """Writes a module of the working folder; returns a name for each of its functions."""
    monkeypatch.chdir(tmp_path)
    module = f"own_{abs(hash(request.node.name))}"
    (tmp_path / f"{module}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda path: f"{module}:{path}"


def pair(size=(24, 32)):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)), rng.integers(0, 5, size).astype(np.uint8)


def item_of(transform, seed):
    return transform(*pair(), np.random.default_rng(seed))


def test_an_item_depends_on_its_seed_alone_and_the_run_on_nothing_of_it(named):
    transform = TrainTransform((16, 16), own=OwnTransform(named("speckle"), classes=5))
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    first = item_of(transform, 3)
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all() and torch.equal(torch.get_rng_state(), before[2])
    random.seed(), np.random.seed(5), torch.manual_seed(6)
    again, other = item_of(transform, 3), item_of(transform, 4)
    assert torch.equal(first["pixel_values"], again["pixel_values"]) and torch.equal(first["labels"], again["labels"])
    assert not torch.equal(first["pixel_values"], other["pixel_values"])
    assert (first["labels"][0] == 255).all() and (first["labels"][1:] != 255).any()


def test_it_comes_after_everything_else_and_changes_no_draw_before_it(named):
    plain = item_of(TrainTransform((16, 16), mean=(0, 0, 0), std=(1, 1, 1)), 1)
    transform = TrainTransform((16, 16), mean=(0, 0, 0), std=(1, 1, 1), own=OwnTransform(named("darker"), classes=5))
    halved = item_of(transform, 1)
    assert torch.equal(halved["labels"], plain["labels"])
    expected = ((plain["pixel_values"] * 255).round() / 2).floor() / 255
    torch.testing.assert_close(halved["pixel_values"], expected)


def test_another_process_gets_it_by_its_name(named):
    transform = pickle.loads(pickle.dumps(OwnTransform(named("darker"), classes=5)))
    assert transform.name == named("darker") and transform.classes == 5
    assert pickle.loads(pickle.dumps(OwnTransform(np.copy, classes=2))).function is np.copy


@pytest.fixture
def every_option(named, tmp_path):
    """Data sets that have, between them, all that a recipe can ask of one."""
    yolo(tmp_path / "labelled", splits=("train",))
    streets = Domain.from_streets("clear", count=2, size=(24, 32))
    drawn = Domain.from_annotations(tmp_path / "labelled", name="drawn")
    own = OwnTransform(named("speckle"), classes=len(streets.labels.names))
    posed = TrainTransform((16, 16), vertical_flip=0.5, turns=True, rotation=20.0, recolor=True, own=own)
    return {
        "transform": TrainingSet([streets], posed, weights=[1.0], seed=3, unreadable="skip"),
        "annotations": TrainingSet([drawn], TrainTransform((16, 16), resize=(32, 48))),
        "corruption": EvaluationSet(corrupted(streets, "fog", 3), EvalTransform(size=(16, 24)), "skip"),
        "own size": EvaluationSet(drawn, EvalTransform(size=None)),
    }


def assert_equal_items(here, there):
    assert here.keys() == there.keys()
    for key, value in here.items():
        assert torch.equal(value, there[key]), key


def test_every_data_set_can_be_sent_to_another_process(every_option):
    for name, items in every_option.items():
        sent = pickle.loads(pickle.dumps(items))
        assert len(sent) == len(items), name
        assert_equal_items(items[1], sent[1])


def test_spawned_workers_make_the_same_items(every_option):
    items = ConcatDataset(every_option.values())  # in one loader: starting a process takes seconds
    loader = DataLoader(items, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    for index, there in enumerate(loader):
        assert_equal_items(items[index], there)
    assert index == len(items) - 1 == 7


@pytest.mark.parametrize(
    "function, told",
    [
        (lambda image, mask: image, "returned an array of uint8 (24, 32, 3), expected a pair (image, mask)"),
        (lambda image, mask: {"image": image, "mask": mask}, "returned a value of type dict, expected a pair"),
        (
            lambda image, mask: (image[:-1], mask),
            "an image that is an array of uint8 (23, 32, 3), expected an array of",
        ),
        (lambda image, mask: (image / 255, mask), "an image that is an array of float64 (24, 32, 3), expected"),
        (lambda image, mask: (image, mask[:, :-1]), "a mask that is an array of uint8 (24, 31), expected an array of"),
        (lambda image, mask: (image, mask.astype(int)), "a mask that is an array of int64 (24, 32), expected"),
        (lambda image, mask: (Image.fromarray(image), mask), "an image that is a value of type Image, expected"),
        (
            lambda image, mask: (image, mask + np.uint8(3)),
            "a mask with the ids [5, 6, 7], expected ids from 0 to 4, or",
        ),
        (lambda image: (image, image), "failed: TypeError: "),
        (lambda image, mask: 1 / 0, "failed: ZeroDivisionError: division by zero ("),
    ],
)
def test_what_it_returns_is_checked(function, told):
    own = OwnTransform(function, classes=5)
    with pytest.raises(UserError) as error:
        own(*pair(), np.random.default_rng(0))
    assert str(error.value).startswith("data.transform: ") and told in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(UserError):
        own.try_out((24, 32))


def test_ids_that_are_ignored_are_none_of_the_classes_and_an_error_says_where():
    OwnTransform(lambda image, mask: (image, np.full_like(mask, 255)), classes=1).try_out((8, 8))
    with pytest.raises(UserError, match=r"KeyError: 'no' \(.*test_own_transform.py, line \d+\)$"):
        OwnTransform(lambda image, mask: {}["no"], classes=1).try_out((8, 8))


@pytest.mark.parametrize(
    "name, told",
    [
        (
            "no_such_module_here:f",
            "cannot be imported: there is no module no_such_module_here, neither installed nor in",
        ),
        ("MODULE:speckl", "has no speckl; did you mean speckle?"),
        ("MODULE:number", "is a value of type int, expected a function of (image, mask)"),
        ("MODULE:darker.nothing", "has no darker.nothing"),
        ("MODULE", "found 'MODULE', expected package.module:callable"),
        (":f", "expected package.module:callable"),
    ],
)
def test_what_cannot_be_imported_is_refused(named, name, told):
    module = named("").removesuffix(":")
    with pytest.raises(UserError) as error:
        load(name.replace("MODULE", module))
    assert told.replace("MODULE", module) in str(error.value)


@pytest.mark.parametrize("source", ["1 / 0", "def broken(:"])
def test_a_module_that_fails_is_named_with_its_line(named, tmp_path, source):
    (tmp_path / "own_broken.py").write_text(f"\n{source}\n")
    with pytest.raises(UserError, match=r"own_broken:f cannot be imported: \w+Error: "):
        load("own_broken:f")


def test_the_record_has_name_and_source(named, tmp_path):
    assert described(None) is None
    record = described(named("speckle"))
    assert record["name"] == named("speckle") and len(record["sha256"]) == 64
    assert described(named("darker"))["sha256"] == record["sha256"], "of the whole file"
    file = tmp_path / f"{named('').removesuffix(':')}.py"
    file.write_text(f"{SOURCE}\n# changed\n")
    assert described(named("speckle"))["sha256"] != record["sha256"]
