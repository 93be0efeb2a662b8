"""`predict --as` and `evaluate --as`: zips for benchmark servers."""

import json
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

import deft_hf.evaluate as evaluate
import deft_hf.predict as predict
from deft_hf.utils.errors import UserError
from tests import tiny
from tests.test_predict import exported, picture

RAW = {"road": 7, "car": 26, "sky": 23, "rider": 25, "bus": 28, "traffic light": 19, "bicycle": 33}
NAMES = tuple(RAW)[: tiny.NUM_LABELS]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "final"
    exported(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def raw_of(ids):
    return np.array([RAW[name] for name in NAMES], np.uint8)[ids]


def archived(path):
    with ZipFile(path) as archive:
        return {name: np.asarray(Image.open(archive.open(name))) for name in archive.namelist()}


def test_predict_writes_what_the_server_takes(model, tmp_path, capsys):
    for index, city in enumerate(("berlin", "bonn")):
        (tmp_path / "in" / city).mkdir(parents=True)
        picture(seed=index).save(tmp_path / "in" / city / f"{city}_000000_000019_leftImg8bit.png")
    predict.main([model, str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--as", "cityscapes"])
    assert "predictions.json, cityscapes.zip" in capsys.readouterr().out
    found = archived(tmp_path / "out" / "cityscapes.zip")
    assert [*found] == [f"{city}_000000_000019_leftImg8bit.png" for city in ("berlin", "bonn")]
    for name, raw in found.items():
        ids = np.asarray(Image.open(tmp_path / "out" / "classes" / name.split("_")[0] / name))
        assert len(np.unique(ids)) > 1 and np.array_equal(raw, raw_of(ids))


def test_what_the_server_does_not_know_is_refused_first(model, tmp_path):
    (tmp_path / "in").mkdir()
    picture().save(tmp_path / "in" / "street.png")
    with pytest.raises(UserError, match="street: is not called as the images of ACDC are"):
        predict.main([model, str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--as", "acdc"])
    exported(tmp_path / "nameless")
    picture().save(tmp_path / "GOPR0001_frame_000001_rgb_anon.png")
    given = [str(tmp_path / "nameless"), str(tmp_path / "GOPR0001_frame_000001_rgb_anon.png")]
    with pytest.raises(UserError, match="the class LABEL_0, which ACDC's server does not know"):
        predict.main([*given, "--out", str(tmp_path / "out"), "--as", "acdc"])
    assert not (tmp_path / "out").exists()


def test_evaluate_writes_it_of_the_benchmarks_domains(model, tmp_path):
    frames = [f"lindau/lindau_000000_{number:06d}" for number in range(2)]
    for folder, keys in (("city", frames), ("game", ["00001"]), ("play", ["00002"])):
        for index, key in enumerate(keys):
            for kind in ("images", "masks"):
                (tmp_path / folder / kind / key).parent.mkdir(parents=True, exist_ok=True)
            picture(seed=index).save(tmp_path / folder / "images" / f"{key}.png")
            Image.fromarray(np.full((50, 70), index, np.uint8)).save(tmp_path / folder / "masks" / f"{key}.png")
    (tmp_path / "recipe.yaml").write_text(
        json.dumps(
            {
                "model": {"checkpoint": "embedded"},
                "data": {
                    "root": str(tmp_path),
                    "labels": {"names": list(NAMES)},
                    "source": [{"folder": "game"}],
                    "unseen": [{"folder": "city"}, {"folder": "play"}],
                    "image_size": [64, 96],
                },
                "training": {"output_dir": str(tmp_path / "run"), "max_steps": 1},
            }
        )
    )
    given = [model, str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out"), "--as", "cityscapes", "--quiet"]
    evaluate.main(given)
    assert [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.zip")] == [
        "city/cityscapes.zip"
    ]
    found = archived(tmp_path / "out" / "city" / "cityscapes.zip")
    assert [*found] == [f"{key.split('/')[1]}_leftImg8bit.png" for key in frames]
    for key, raw in zip(frames, found.values(), strict=True):
        assert np.array_equal(raw, raw_of(np.asarray(Image.open(tmp_path / f"out/city/classes/{key}.png"))))
    assert {raw.shape for raw in found.values()} == {(50, 70)}  # not the 64 x 96 that the model sees
    for key, value in (("halve", "true"), ("crop_or_pad", 32)):
        with pytest.raises(UserError, match=f"city: found {key}, so that .* Cityscapes's server takes them at the im"):
            evaluate.main([*given[:2], f"data.unseen.0.{key}={value}", "--out", str(tmp_path / key), *given[4:]])
        assert not (tmp_path / key).exists()
    evaluate.main([*given[:2], "data.unseen.1.halve=true", "--out", str(tmp_path / "other"), *given[4:]])
    with pytest.raises(UserError, match="is made of the pictures"):
        evaluate.main([*given, "--no-pictures", "--overwrite"])
    with pytest.raises(UserError, match="is not called as the images of WildDash 2 are"):
        evaluate.main([*given[:-3], "--as", "wilddash", "--overwrite"])
