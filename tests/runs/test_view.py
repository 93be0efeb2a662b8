"""The page to leaf through a run: what it shows, and to whom."""

import http.client
import io
import json
import re
import shutil
import subprocess
import threading
from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image

from deft_hf.data.domains import Domain
from deft_hf.publish.facts import RunFacts
from deft_hf.recipe import Recipe
from deft_hf.runs.segmenter import Segmenter
from deft_hf.runs.view import gallery as module
from deft_hf.runs.view.gallery import OWN, Gallery
from deft_hf.runs.view.server import serve, view
from deft_hf.scoring.report import image_caption
from deft_hf.utils.errors import UserError
from deft_hf.utils.files import METRICS, RECIPE
from tests.comparison.test_plan import write_recipe
from tests.test_predict import exported

SIZE = (64, 96)
PLACE = {"streets": "fog", "count": 2, "size": list(SIZE), "labels": "none", "name": "client"}
FACTS = {
    "stages": [],
    "batch_size": 2,
    "learning_rates": {},
    "weight_decays": {},
    "decays": None,
    "initial_share": {},
    "distance": {},
    "batchnorm": "reestimate",
    "train_seconds": 1.0,
    "resumed": False,
    "processes": 1,
    "hardware": "CPU",
    "versions": {},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What a run of two methods leaves behind, as far as the page needs it."""
    folder = tmp_path_factory.mktemp("view")
    unseen = [{"streets": "night", "count": 3, "seed": 2, "size": list(SIZE)}, PLACE]
    path = write_recipe(folder, data={"unseen": unseen}, method={"baselines": ["joint"]})
    recipe = Recipe.load(path, [f"training.output_dir={folder / 'out'}"])
    names = list(recipe.data.label_space().names)
    by_class = {"iou": [0.25] * len(names), "absent": []}
    scores = {"night": {"mean_iou": 0.25, **by_class}, "clear": {"mean_iou": None, **by_class}}
    for seed, (method, place) in enumerate((("deft", folder / "out"), ("joint", folder / "out/baselines/joint"))):
        exported(place)
        segmenter = Segmenter.open(str(place))
        with torch.no_grad():
            for parameter in segmenter.model.decode_head.parameters():
                parameter.normal_(generator=torch.Generator().manual_seed(seed))
        segmenter.model.save_pretrained(place)
        facts = RunFacts(method=method, seed=0, labels=names, scores=scores, **FACTS)
        (place / METRICS).parent.mkdir()
        (place / METRICS).write_text(json.dumps(facts.to_dict()))
    (folder / "out" / RECIPE).write_text(recipe.to_yaml())
    return folder / "out"


@pytest.fixture(scope="module")
def gallery(run):
    return Gallery(run)


@pytest.fixture
def ask(gallery):
    server = serve(gallery)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def request(path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers

    yield request
    server.shutdown()
    server.server_close()
    gallery.own.clear()


def pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def test_contents_are_the_methods_and_domains_of_the_run(gallery):
    found = gallery.contents()
    assert found["methods"] == ["joint", "deft"] and found["scores"]["deft"] == {"night": 0.25, "clear": None}
    shelves = {one["name"]: (one["role"], one["images"]) for one in found["shelves"]}
    assert shelves == {
        "clear": ("validation", 2),
        "night": ("unseen", 3),
        "client": ("without labels", 2),
        OWN: ("dropped in", 0),
    }
    assert [one["name"] for one in found["classes"]] == list(gallery.labels.names)


def test_pictures_are_what_the_models_predict(gallery, run):
    night = Domain.from_streets("night", count=3, seed=2, size=SIZE)
    image, truth = night.load(1)
    found = gallery.describe("night", 1)
    ids = {
        method: gallery._models[method].classes(image) for method in ("joint", "deft")
    }  # opened when they are first asked
    assert found["id"] == night.ids[1] and found["labelled"]
    assert found["captions"] == {method: image_caption(one, truth, gallery.labels) for method, one in ids.items()}
    assert (
        found["disagreement"] == pytest.approx(float((ids["joint"] != ids["deft"]).mean()))
        and found["disagreement"] > 0
    )
    painted = gallery.labels.colorize(ids["deft"])
    assert np.array_equal(pixels(gallery.picture("night", 1, "method:deft")), painted)
    assert np.array_equal(pixels(gallery.picture("night", 1, "image")), np.asarray(image))
    assert np.array_equal(pixels(gallery.picture("night", 1, "truth")), gallery.labels.colorize(truth))
    blended = pixels(gallery.picture("night", 1, "method:deft", "overlay")).astype(int)
    assert np.abs(blended - (painted.astype(int) + np.asarray(image)) / 2).max() <= 1
    errors = pixels(gallery.picture("night", 1, "method:deft", "errors"))
    assert np.array_equal((errors == module._WRONG).all(-1), (ids["deft"] != truth) & (truth != 255))
    differ = pixels(gallery.picture("night", 1, "disagreement"))
    assert np.array_equal((differ == module._WRONG).all(-1), ids["joint"] != ids["deft"])


def test_each_domain_is_seen_at_its_test_size(run):
    resolved = (run / RECIPE).read_text()
    recipe = Recipe.load(run / RECIPE, ["data.eval_size={short: 32}", "data.unseen.0.eval_size=[48, 80]"])
    (run / RECIPE).write_text(recipe.to_yaml())
    try:
        sized = Gallery(run)
        sized.describe("night", 0)
        seen = []
        sized._models["deft"].model.register_forward_pre_hook(lambda model, args: seen.append(args[0].shape[2:]))
        for shelf in ("night", "clear", "client"):
            sized.describe(shelf, 1)
        sized.picture(OWN, sized.add(pixels_of((40, 80))), "method:deft")
        assert [tuple(size) for size in seen] == [(48, 80), (32, 48), (32, 48), (32, 64)]
        assert pixels(sized.picture("night", 1, "method:deft")).shape == (*SIZE, 3)
    finally:
        (run / RECIPE).write_text(resolved)


def pixels_of(size):
    stream = io.BytesIO()
    Image.new("RGB", size[::-1], (90, 120, 150)).save(stream, "PNG")
    return stream.getvalue()


def test_images_are_ranked_by_disagreement(gallery, monkeypatch):
    shares = [gallery.describe("night", index)["disagreement"] for index in range(3)]
    assert gallery.ranked("night") == sorted(range(3), key=lambda index: -shares[index])
    monkeypatch.setattr(module, "MOST_RANKED", 2)
    assert sorted(gallery.ranked("night")) == [0, 1]


def test_a_long_side_is_shown_smaller():
    assert pixels(module._png(Image.new("RGB", (3200, 10)))).shape == (5, 1600, 3)


def test_predictions_are_kept_only_so_many(gallery, monkeypatch):
    monkeypatch.setattr(module, "_KEPT", 2)
    gallery._predicted.clear()
    for index in range(3):
        gallery.describe("night", index)
    assert len(gallery._predicted) == 2


def test_the_page_and_its_parts_are_served(ask):
    status, page, headers = ask("/")
    assert status == 200 and b"<html" in page and headers["X-Content-Type-Options"] == "nosniff"
    status, content, _ = ask("/contents")
    assert json.loads(content)["methods"] == ["joint", "deft"]
    status, content, _ = ask("/image?shelf=client&index=0")
    assert status == 200 and not json.loads(content)["labelled"]
    status, content, headers = ask("/picture?shelf=client&index=0&what=method:joint")
    assert status == 200 and headers["Content-Type"] == "image/png" and pixels(content).shape == (*SIZE, 3)
    assert sorted(json.loads(ask("/ranked?shelf=client")[1])) == [0, 1]


def test_a_picture_can_be_dropped_in(ask):
    status, content, _ = ask("/own", pixels_of((30, 40)), **{"X-View": "own"})
    assert status == 200 and json.loads(content) == {"shelf": OWN, "index": 0}
    status, content, _ = ask("/picture?shelf=your+pictures&index=0&what=method:deft")
    assert status == 200 and pixels(content).shape == (30, 40, 3)


@pytest.mark.parametrize(
    "path, status, said",
    [
        ("/image?shelf=nowhere&index=0", 400, "expected one of clear, night, client"),
        ("/image?shelf=night&index=99", 400, "not understood"),
        ("/image?shelf=night&index=first", 400, "not understood"),
        ("/image", 400, "not understood"),
        ("/picture?shelf=night&index=0&what=method:other", 400, "expected one of joint, deft"),
        ("/picture?shelf=client&index=0&what=truth", 400, "client: has no labels"),
        ("/../../etc/passwd", 404, "no such page"),
    ],
)
def test_what_is_not_there_is_said(ask, path, status, said):
    found, content, _ = ask(path)
    assert found == status and said in content.decode()


def test_other_pages_and_machines_are_refused(ask):
    assert ask("/contents", Host="evil.example:80")[0] == 403
    assert ask("/own", b"x")[0] == 403  # a form of another page cannot set the header
    assert ask("/own", b"", **{"X-View": "own"})[0] == 413
    status, content, _ = ask("/own", b"no picture", **{"X-View": "own"})
    assert status == 400 and "cannot be read" in content.decode()


def test_what_is_no_run_is_refused(tmp_path, run, gallery):
    with pytest.raises(UserError, match="found no recipe.yaml, expected the output folder of a training run"):
        Gallery(tmp_path)
    (tmp_path / RECIPE).write_text((run / RECIPE).read_text())
    with pytest.raises(UserError, match="found no finished method"):
        Gallery(tmp_path)
    with serve(gallery) as server, pytest.raises(UserError, match="port: .* cannot be used"):
        view(run, server.server_port, browser=False)


def test_names_are_never_markup():
    page = files("deft_hf.runs.view").joinpath("page.html").read_text()
    assert "innerHTML" not in page and "insertAdjacentHTML" not in page and "document.write" not in page


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium, which is not installed here")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_draws_the_page(gallery, width, tmp_path):
    server = serve(gallery)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--window-size={width},900",
        "--virtual-time-budget=8000",
    ]
    command = [
        "chromium",
        *options,
        f"--user-data-dir={tmp_path}",
        "--dump-dom",
        f"http://127.0.0.1:{server.server_port}/",
    ]
    drawn = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout
    server.shutdown()
    server.server_close()
    assert len(re.findall("<figure>", drawn)) == 5 and "clear (validation), 1 of 2" in drawn
    assert re.search(r"<b>deft</b><span> mean IoU [\d.]+ %", drawn)
