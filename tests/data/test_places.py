"""Places without labels: which images they have."""

import json

import numpy as np
import pytest
from PIL import Image

from deft_hf.data.domains import Domain
from deft_hf.data.places import Place
from deft_hf.data.roles import without_labels
from deft_hf.utils.errors import UnreadableFile, UserError


@pytest.fixture
def client(tmp_path):
    """Four images, one of them deep, and a file that is none."""
    (tmp_path / "client" / "monday").mkdir(parents=True)
    for index, name in enumerate(("a", "b", "c", "monday/d")):
        Image.fromarray(np.full((6, 8, 3), index, np.uint8)).save(tmp_path / "client" / f"{name}.png")
    (tmp_path / "client" / "notes.txt").write_text("from the client\n")
    return tmp_path / "client"


def test_a_folder_of_images_is_a_place(client):
    place = Place.from_folder(client)
    assert place.name == "client" and place.ids == ["a", "b", "c", "monday/d"] and len(place) == 4
    assert np.asarray(place.load(3)).max() == 3
    assert place.path(1) == str(client.resolve() / "b.png")
    assert place.unreadable() == []


def test_images_may_lie_in_a_folder_of_their_own(client):
    client.rename(client.parent / "images")
    assert Place.from_folder(client.parent).ids == ["a", "b", "c", "monday/d"]
    assert Place.from_folder(client.parent, images="images/monday").ids == ["d"]


def test_some_of_the_images(client):
    (client / "split.json").write_text(json.dumps({"june": ["b", "monday/d"]}))
    assert Place.from_folder(client, split="june").ids == ["b", "monday/d"]
    half = Place.from_folder(client, split=0.5).ids
    assert 0 < len(half) < 4 and set(half) | set(Place.from_folder(client, split=-0.5).ids) == {
        "a",
        "b",
        "c",
        "monday/d",
    }
    with pytest.raises(UserError, match="no split 'july'"):
        Place.from_folder(client, split="july")
    with pytest.raises(UserError, match="no such folder"):
        Place.from_folder(client / "nowhere")


def test_what_cannot_be_read_is_named(client):
    (client / "b.png").write_bytes(b"no picture")
    place = Place.from_folder(client)
    with pytest.raises(UnreadableFile, match="b.png"):
        place.load(1)
    assert len(place.unreadable()) == 1 and "b.png" in place.unreadable()[0]


def test_a_domain_without_its_labels_is_a_place():
    domain = Domain.from_streets("night", count=2, size=(32, 48), name="dark")
    place = without_labels(domain)
    assert place.name == "dark" and place.ids == domain.ids and place.path(0) is None
    assert np.array_equal(np.asarray(place.load(1)), np.asarray(domain.load(1)[0]))
    assert "mask" not in place.dataset.column_names


def test_images_of_a_data_set_are_a_place(tmp_path):
    domain = Domain.from_streets("rain", count=3, size=(32, 48))
    domain.dataset.to_parquet(tmp_path / "set" / "train.parquet")
    place = Place.from_hub(tmp_path / "set", "train", name="wet")
    assert place.name == "wet" and place.ids == domain.ids
    assert np.array_equal(np.asarray(place.load(2)), np.asarray(domain.load(2)[0]))
    with pytest.raises(UserError, match="no column photo; its columns are id, image, mask"):
        Place.from_hub(tmp_path / "set", "train", image_column="photo")
