"""Two hundred inputs and more that are damaged or unusual: the right result, or one message and status 2."""

import io
import json
import os
from contextlib import redirect_stderr

import numpy as np
import pytest
from PIL import Image

from deft_hf.utils.errors import run_command
from tests.unusual import checkpoints, encodings, items, pictures, recipes, splits

SIZE = (8, 12)
KINDS = (recipes, pictures, encodings, splits, checkpoints, items)


def cases(table):
    """The inputs of all kinds."""
    return [
        pytest.param(kind, given, end, id=f"{kind.__name__.rpartition('.')[2]}-{name}")
        for kind in KINDS
        for name, (given, end) in getattr(kind, table).items()
    ]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working folder: two domains, a link to one of them, and nothing else; outside of it is `outside`."""
    (tmp_path / "outside").mkdir()
    place = tmp_path / "place"
    rng = np.random.default_rng(0)
    for name in ("town", "coast"):
        for kind in ("images", "masks"):
            (place / name / kind).mkdir(parents=True)
        for index in range(3):
            image, mask = rng.integers(0, 255, (*SIZE, 3)), rng.integers(0, 2, SIZE)
            Image.fromarray(image.astype(np.uint8)).save(place / name / "images" / f"{index}.png")
            Image.fromarray(mask.astype(np.uint8)).save(place / name / "masks" / f"{index}.png")
    (place / "town" / "split.json").write_text(json.dumps({"train": ["0", "1"], "val": ["2"]}))
    (place / "link").symlink_to("town")
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize(("kind", "given", "right"), cases("RIGHT"))
def test_the_right_result(kind, given, right, place):
    np.testing.assert_equal(kind.outcome(given, place), right)


@pytest.mark.parametrize(("kind", "given", "part"), cases("REFUSED"))
def test_one_message(kind, given, part, place):
    with pytest.raises(SystemExit) as leaving, redirect_stderr(io.StringIO()) as stream:
        run_command(lambda: kind.outcome(given, place), "")
    said = stream.getvalue()
    assert leaving.value.code == 2
    assert part in said and said.count("error: ") == 1 and "Traceback" not in said, said
    assert not (place / "ran").exists() and not os.listdir(place.parent / "outside")


def test_there_are_two_hundred_of_them():
    assert len(cases("RIGHT") + cases("REFUSED")) >= 200
