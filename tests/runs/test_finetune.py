"""From a folder of pictures to a model in one call."""

from pathlib import Path

import pytest
from PIL import Image

import deft_hf
from deft_hf.data.domains import Domain
from deft_hf.runs import places
from deft_hf.utils.errors import UserError

SHORT = [
    "training.max_steps=1",
    "training.num_train_epochs=1",
    "method.decoder_warmup_steps=1",
    "training.per_device_train_batch_size=2",
    "training.use_cpu=true",
    "training.dataloader_num_workers=0",
    "training.dataloader_persistent_workers=false",
    "data.image_size=[64, 96]",
    "data.crop_size=[64, 64]",
]


def drawn(folder, look, count, labelled, seed=0):
    domain = Domain.from_streets(look, count=count, seed=seed, size=(64, 96))
    for index, name in enumerate(domain.ids):
        image, mask = domain.load(index)
        for kind, picture in (("images", image), ("masks", Image.fromarray(mask)))[: 2 if labelled else 1]:
            (folder / kind).mkdir(parents=True, exist_ok=True)
            picture.save(folder / kind / f"{name}.png")
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places, "_CALIBRATED_ON", 2)
    monkeypatch.setattr(places, "_SEVERITIES", (3,))
    drawn(Path("photos"), "clear", 10, True)
    return tmp_path


def test_five_lines(here, monkeypatch):
    monkeypatch.setattr("deft_hf.runs.finish.verify_export", lambda *args, **kwargs: None)
    drawn(Path("coast"), "fog", 3, False)
    drawn(Path("night"), "night", 3, True)
    entry = {"folder": str(here / "night"), "name": "dusk"}  # as in a recipe
    call = {"model": "embedded", "unseen": ["coast", entry], "overrides": SHORT, "progress": False}
    run = deft_hf.finetune("photos", **call)
    assert run.folder == Path("outputs/photos") and run.recipe == Path("outputs/photos.yaml")
    assert (run.folder / "config.json").is_file() and run.recipe.with_suffix(".png").is_file()
    table = run.to_pandas()
    assert set(table.index.get_level_values("method")) == {"joint", "deft"}
    assert set(table.index.get_level_values("domain")) == {*run.validation, "dusk"}
    assert table.loc[("deft", "dusk"), "role"] == "unseen"
    assert set(run.places) == {"coast"} and set(run.places["coast"]["shares"]) == {"joint", "deft"}
    assert all(path.is_file() for path in run.pictures()) and "coast.png" in {path.name for path in run.pictures()}
    assert "<table" in run._repr_html_()
    before = (run.folder / "model.safetensors").stat().st_mtime_ns
    again = deft_hf.finetune("photos", **call)  # it is done
    assert (again.folder / "model.safetensors").stat().st_mtime_ns == before
    assert again.to_pandas().equals(table)


def test_what_is_no_place_is_said(here):
    with pytest.raises(UserError, match="unseen: found no folder moon"):
        deft_hf.finetune("photos", model="embedded", unseen=["moon"], progress=False)
    Path("empty").mkdir()
    with pytest.raises(UserError, match="unseen: found no image in empty"):
        deft_hf.finetune("photos", model="embedded", unseen=["empty"], progress=False)
    with pytest.raises(UserError, match="nowhere: found no such folder"):
        deft_hf.finetune("nowhere", model="embedded", progress=False)
