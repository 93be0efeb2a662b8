"""Data that changed between two starts of a run is noticed, and treated as a changed recipe."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.data.roles import Domains
from deft_hf.runs.same_data import claim_data, data_differences
from deft_hf.utils.errors import UserError
from deft_hf.utils.files import DATA_LISTS, METRICS

LABELS = LabelSpace(("ground", "roof"))


def draw(folder: Path, *keys: str, value: int = 1) -> None:
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for key in keys:
        Image.new("RGB", (8, 8)).save(folder / "images" / f"{key}.png")
        Image.fromarray(np.eye(8, dtype=np.uint8) * np.uint8(value)).save(folder / "masks" / f"{key}.png")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    draw(tmp_path / "town", "a", "b")
    draw(tmp_path / "coast", "a")
    (tmp_path / "out").mkdir()
    return tmp_path


def data(place: Path, unseen: str = "coast") -> Domains:
    town = Domain.from_folder(place / "town", LABELS)
    return Domains([town], [town.select([0])], [Domain.from_folder(place / "coast", LABELS, name=unseen)])


def claim(place: Path, resume_anyway: bool = False, **names: str) -> None:
    claim_data(place / "out", [place / "out"], data(place, **names), resume_anyway)


def test_the_same_data_resume_in_silence(place: Path, capsys: pytest.CaptureFixture):
    claim(place)
    noted = (place / "out" / DATA_LISTS).read_text()
    (place / "out" / "checkpoint-1").mkdir()
    claim(place)
    assert (place / "out" / DATA_LISTS).read_text() == noted and not capsys.readouterr().out


def test_more_images_are_named_and_refused(place: Path, capsys: pytest.CaptureFixture):
    claim(place)
    draw(place / "town", "c", "d")
    claim(place)  # nothing was trained yet
    (place / "out" / "checkpoint-1").mkdir()
    draw(place / "town", "e")
    noted = (place / "out" / DATA_LISTS).read_text()
    with pytest.raises(UserError, match="the data changed .*: town of source has 5 images, before 4. Choose another"):
        claim(place)
    assert (place / "out" / DATA_LISTS).read_text() == noted, "nothing is noted of a start that was refused"
    claim(place, resume_anyway=True)
    assert "warning: " in (said := capsys.readouterr().out) and "town of source has 5 images, before 4" in said
    claim(place)


def test_another_mask_under_the_same_name_is_noticed(place: Path):
    claim(place)
    (place / "out" / "checkpoint-1").mkdir()
    mask = np.random.default_rng(0).integers(0, 2, (8, 8)).astype(np.uint8)
    Image.fromarray(mask).save(place / "coast" / "masks" / "a.png")
    with pytest.raises(UserError, match=r"coast of unseen has other images or masks \(1 as before\)"):
        claim(place)


def test_a_mask_of_equal_size_in_bytes_is_noticed(place: Path):
    claim(place)
    (place / "out" / "checkpoint-1").mkdir()
    path = place / "town" / "masks" / "a.png"
    size = path.stat().st_size
    Image.fromarray(np.eye(8, dtype=np.uint8)[::-1]).save(path)
    assert path.stat().st_size == size
    with pytest.raises(UserError, match="town of source has other images or masks"):
        claim(place)


def test_what_an_earlier_version_noted_of_sizes_is_no_difference(place: Path):
    claim(place)
    noted = place / "out" / DATA_LISTS
    noted.write_text(noted.read_text().replace("contents", "sha256"))
    (place / "out" / "checkpoint-1").mkdir()
    claim(place)
    assert "sha256" not in noted.read_text()


def test_results_do_not_mix(place: Path):
    claim(place)
    (place / "out" / METRICS).parent.mkdir()
    (place / "out" / METRICS).write_text("{}")
    draw(place / "coast", "b")
    for resume_anyway in (False, True):
        with pytest.raises(
            UserError, match="coast of unseen has 2 images, before 1. It has results on the data before"
        ):
            claim(place, resume_anyway)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"source": [1]}'])
def test_a_run_that_noted_nothing_goes_on(place: Path, content: str | None):
    (place / "out" / "checkpoint-1").mkdir()
    if content is not None:
        (place / "out" / DATA_LISTS).write_text(content)
    claim(place)
    assert "contents" in (place / "out" / DATA_LISTS).read_text()


def test_domains_that_come_and_go_are_named():
    one, two = ({"name": name, "images": 1, "contents": name} for name in "ab")
    assert list(data_differences({"source": [one]}, {"source": [one, two]})) == [
        "source has the domains a, b, before a"
    ]
    assert list(data_differences({}, {"unseen": [two]})) == ["unseen has the domains b, before none"]
    assert not list(data_differences({"source": [one]}, {"source": [one], "unseen": []}))
