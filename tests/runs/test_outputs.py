"""Where commands write: below their folder, alone in it, and over nothing that they did not write."""

import io
import itertools
import json
import os
import tempfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from deft_hf import Recipe
from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.models.processor import segmentation_processor
from deft_hf.publish.export import export_generalized
from deft_hf.runs import export as exports
from deft_hf.runs.evaluate import evaluate, score
from deft_hf.runs.export import export
from deft_hf.runs.folder import claimed_folder
from deft_hf.runs.predict import predict
from deft_hf.runs.segmenter import Segmenter
from deft_hf.utils.errors import UserError
from deft_hf.utils.files import LOCK, MARKER
from deft_hf.utils.outputs import claim_output, claimed
from deft_hf.utils.places import check_temporary
from tests import tiny

NAMES = [f"LABEL_{index}" for index in range(tiny.NUM_LABELS)]
CONTENT = {"images": 255, "masks": tiny.NUM_LABELS}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "town"
    export_generalized(tiny.build("segformer").eval(), folder, segmentation_processor(None, (64, 64)))
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with two pairs in `ds` and a recipe that scores them."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for domain, kind in itertools.product(("ds", "town"), CONTENT):
        Path(domain, kind).mkdir(parents=True)
        for index in range(2):
            shape = (40, 56, 3) if kind == "images" else (40, 56)
            pixels = rng.integers(0, CONTENT[kind], shape).astype(np.uint8)
            Image.fromarray(pixels).save(Path(domain, kind, f"{index}.png"))
    sections = {
        "model": {"checkpoint": str(tmp_path)},
        "data": {
            "labels": {"names": NAMES},
            "source": [{"folder": "town"}],
            "unseen": [{"folder": "ds"}],
            "image_size": [64, 64],
            "crop_size": [32, 32],
        },
        "training": {"output_dir": "out", "max_steps": 2, "use_cpu": True},
    }
    Path("recipe.yaml").write_text(json.dumps(sections))
    return tmp_path


def files(folder):
    """By path, the content of every file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def recipe(*overrides):
    return Recipe.load("recipe.yaml", overrides)


COMMANDS = {
    "predict": lambda model, out, **options: predict(model, "ds/images", out, progress=False, **options),
    "evaluate": lambda model, out, **options: evaluate(model, recipe(), out, progress=False, **options),
    "export": lambda model, out, **options: export(model, out, **options),
}


@pytest.fixture
def command(monkeypatch, request):
    monkeypatch.setattr(exports, "verify_export", lambda *arguments: {})
    return COMMANDS[request.param]


@pytest.mark.parametrize("command", COMMANDS, indirect=True)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_a_command_did_not_write_is_not_replaced(command, overwrite, model, place):
    for name in ("classes/0.png", "ds/classes/0.png", "results/metrics.json", "config.json", "predictions.json"):
        Path("mine", name).parent.mkdir(parents=True, exist_ok=True)
        Path("mine", name).write_text("mine")
    Path("file").write_text("mine")
    Path("link").symlink_to("nowhere")
    Path("locked").mkdir()
    Path("locked", LOCK).write_text("a lock of others")
    before = files(place)
    for out in ("mine", "mine/classes", "ds", "file", "file/below", "link", "locked", "x" * 300, "a\0b", str(model)):
        with pytest.raises(UserError, match="nothing was (touched|trained or written)|which is read|lies in"):
            command(model, out, overwrite=overwrite)
    assert files(place) == before and "nowhere" not in os.listdir()
    assert not {path.name for path in place.rglob("*")} & {MARKER}


@pytest.mark.parametrize("command", COMMANDS, indirect=True)
def test_an_own_folder_is_replaced_when_asked_and_the_files_of_others_in_it_stay(command, model, place):
    command(model, "out")
    first = files("out")
    with pytest.raises(UserError, match="It holds an earlier output: choose another folder, or .*overwrite"):
        command(model, "out")
    assert files("out") == first
    Path("out", "notes.txt").write_text("mine")
    written = json.loads(Path("out", MARKER).read_text().splitlines()[-1])
    Path("out", written).write_text("of an earlier output")
    for name, other in COMMANDS.items():
        if other is not command:
            with pytest.raises(UserError, match=f"was not written by {name}|belongs to"):
                other(model, "out", overwrite=True)
    command(model, "out", overwrite=True)
    second = files("out")
    assert second.pop("notes.txt") == b"mine" and second.keys() == first.keys()
    assert second[written] == first[written] or written == "results/metrics.json"


@pytest.mark.parametrize("name", ["images", "masks"])
def test_results_are_not_written_among_the_data(name, model, place):
    with pytest.raises(UserError, match=f"out: ds/{name}/out lies in ds/{name}, so that results would be taken"):
        evaluate(model, recipe(), f"ds/{name}/out")
    with pytest.raises(UserError, match=f"out: ds/{name}/out lies in ds/{name}"):
        predict(model, f"ds/{name}", f"ds/{name}/out")
    predict(model, "ds/images", "out", progress=False)
    with pytest.raises(UserError, match="out: out holds out/overlays, which is read"):
        predict(model, "out/overlays", "out", overwrite=True)
    assert not Path("ds", name, "out").exists()


def test_a_checkpoint_is_not_changed(model, place):
    Path("run/checkpoint-1").mkdir(parents=True)
    Path("run/checkpoint-1/manifest.json").write_text("{}")
    with pytest.raises(UserError, match="out: run/checkpoint-1/scores lies in the checkpoint .*checkpoint-1, which"):
        predict(model, "ds/images", "run/checkpoint-1/scores")
    assert [path.name for path in Path("run/checkpoint-1").iterdir()] == ["manifest.json"]


def test_links_do_not_lead_out(model, place):
    Path("elsewhere").mkdir()
    predict(model, "ds/images", "out", progress=False)
    first = files("out/classes")
    os.rename("out/classes", "elsewhere/classes")
    os.symlink(place / "elsewhere" / "classes", "out/classes")
    with pytest.raises(UserError, match="out/classes/0.png: links lead out of out, to .*elsewhere"):
        predict(model, "ds/images", "out", overwrite=True, progress=False)
    assert files("elsewhere/classes") == first


BAD_IDS = ["../../escaped", "/absolute", "a/../../b", "a//b", "./a", "a/", "", ".", "line\nbreak", "null\0", "x" * 252]


@pytest.mark.parametrize("key", BAD_IDS)
def test_ids_choose_no_place(key, model, place):
    png = io.BytesIO()
    Image.new("L", (56, 40)).save(png, "PNG")
    rows = {"id": [key, "good"], "image": [{"bytes": png.getvalue(), "path": None}] * 2}
    features = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image(decode=False)})
    rows = datasets.Dataset.from_dict(rows, features=features)
    domain = Domain("town", LabelSpace(tuple(NAMES)), rows.add_column("mask", rows["image"][:]))
    segmenter = Segmenter.open(str(model))
    with pytest.raises(
        UserError, match="^town: the id .*so that no picture can be named after it; nothing was written"
    ):
        score(segmenter, unseen=[domain], pictures="a/b/scores", progress=False)
    with pytest.raises(UserError, match="so that no (picture|file in a/b) can be named after it"):
        segmenter.save("a/b", key, Image.new("RGB", (8, 8)), np.zeros((8, 8), np.uint8))
    assert not Path("a").exists() and not list(place.rglob("*absolute*"))


def test_ids_with_folders_are_fine_and_a_picture_is_written_once(model, place):
    segmenter, image, ids = Segmenter.open(str(model)), Image.new("RGB", (8, 8)), np.zeros((8, 8), np.uint8)
    assert segmenter.save("out", "a/b", image, ids)["classes"] == str(Path("out/classes/a/b.png"))
    with pytest.raises(UserError, match="out/classes/a/b.png: exists already; nothing was replaced"):
        segmenter.save("out", "a/b", image, ids)


def test_a_folder_is_claimed_by_one(place, monkeypatch):
    monkeypatch.setattr("deft_hf.runs.folder._PATIENCE", 0.1)
    with claim_output("out", "predict"):
        with pytest.raises(UserError, match="out belongs to a run that is still running; nothing was touched"):
            with claim_output("out", "predict", overwrite=True):
                pass
        with pytest.raises(UserError, match="training.output_dir: out (exists|belongs)"), claimed_folder(recipe()):
            pass
    assert not Path("out").exists()
    # Where locks do nothing, two that looked at the same time are told apart by who makes the marker.
    seen = []

    def look():
        if seen:
            Path("out", MARKER).write_text('{"command": "predict"}\n')
        seen.append(None)

    with pytest.raises(UserError, match="was claimed by another process"), claimed(Path("out"), "predict", look):
        pass


def test_a_run_that_another_claimed_in_between_is_refused(place, monkeypatch):
    from deft_hf.runs import folder

    def first(path):
        monkeypatch.setattr(folder, "check_writable", lambda path: path.mkdir(exist_ok=True))
        with claimed_folder(recipe("training.seed=7")) as out:
            (out / "results").mkdir()
            (out / "results" / "metrics.json").write_text("{}")

    monkeypatch.setattr(folder, "check_writable", first)
    with pytest.raises(
        UserError, match=r"holds another run, whose recipe differs in training.seed \(7 there, 42 here"
    ):
        with claimed_folder(recipe()):
            pass
    assert "seed: 7" in Path("out", "recipe.yaml").read_text()


def test_a_recipe_that_somebody_keeps_in_the_folder_is_no_run(place):
    Path("out").mkdir()
    text = "# my own\n" + Path("recipe.yaml").read_text()
    Path("out", "recipe.yaml").write_text(text)
    with (
        pytest.raises(UserError, match="exists and is no run of deft_hf; nothing was touched"),
        claimed_folder(recipe()),
    ):
        pass
    assert files("out") == {"recipe.yaml": text.encode()}


def test_a_run_of_an_earlier_version_without_a_marker_is_recognised_and_no_link_leads_out_of_it(place):
    with claimed_folder(recipe()) as out:
        pass
    (out / MARKER).unlink()
    (out / LOCK).unlink()
    (out / "results").mkdir()
    (out / "results" / "metrics.json").write_text("{}")
    with claimed_folder(recipe()):
        assert json.loads((out / MARKER).read_text()) == {"command": "train"}
    os.rename("out/results", "elsewhere")
    os.symlink(place / "elsewhere", "out/results")
    with pytest.raises(UserError, match="out/results leads out of out, to .*elsewhere; nothing was touched"):
        with claimed_folder(recipe()):
            pass


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "recipe.yaml/out"])
def test_a_folder_that_cannot_be_made_is_one_message(name, place):
    with pytest.raises(UserError), claimed_folder(recipe(f"training.output_dir={json.dumps(name)}")):
        pass
    assert sorted(os.listdir()) == ["ds", "recipe.yaml", "town"]


def test_a_full_temporary_folder_is_said_first(monkeypatch, model, place):
    monkeypatch.setattr(tempfile, "tempdir", str(place / "nowhere"))
    with pytest.raises(UserError, match="temporary folder: cannot be written to .*TMPDIR"):
        check_temporary()
    with pytest.raises(UserError, match="temporary folder"):
        export(model, "out")
    assert not Path("out").exists()
