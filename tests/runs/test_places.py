"""What models make of places without labels, and where it is written."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from deft_hf.data.domains import Domain
from deft_hf.data.roles import Domains, without_labels
from deft_hf.data.streets import STREETS
from deft_hf.models.processor import segmentation_processor
from deft_hf.recipe import Recipe
from deft_hf.runs import places
from deft_hf.runs.evaluate import evaluate
from deft_hf.runs.places import look_at, write_findings
from deft_hf.runs.segmenter import Segmenter
from deft_hf.runs.train import train
from deft_hf.scoring.estimates import DEFAULT_METHOD
from deft_hf.utils.errors import UserError
from tests import tiny
from tests.comparison.test_plan import write_recipe
from tests.test_predict import exported

SIZE = (32, 48)
CLIENT = {"streets": "night", "count": 3, "seed": 5, "size": [64, 96], "labels": "none", "name": "client"}


@pytest.fixture(autouse=True)
def few_copies(monkeypatch):
    monkeypatch.setattr(places, "_CALIBRATED_ON", 2)
    monkeypatch.setattr(places, "_SEVERITIES", (3,))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    found = {}
    for seed, name in enumerate(("joint", "deft")):
        folder = tmp_path_factory.mktemp("models") / name
        exported(folder)
        found[name] = Segmenter.open(str(folder), size=SIZE)
        with torch.no_grad():
            for parameter in found[name].model.decode_head.parameters():
                parameter.normal_(generator=torch.Generator().manual_seed(seed))
    return found


def drawn(look, count=3, seed=0):
    return Domain.from_streets(look, count=count, seed=seed, size=SIZE)


@pytest.fixture
def domains():
    return Domains([drawn("clear")], [drawn("clear", seed=1)], [drawn("fog")], [without_labels(drawn("night", 10))])


def test_findings_are_what_the_models_predict(models, domains):
    (found,) = look_at(models, domains, progress=False)
    place = domains.places[0]
    predicted = {
        name: [model.classes(place.load(index)) for index in range(len(place))] for name, model in models.items()
    }
    for name, ids in predicted.items():
        shares = np.bincount(np.stack(ids).ravel(), minlength=STREETS.num_labels) / np.stack(ids).size
        assert found.shares[name] == pytest.approx(shares.tolist())
    differ = [float((one != two).mean()) for one, two in zip(*predicted.values(), strict=True)]
    assert found.scores == pytest.approx(differ) and len(set(differ)) > 1
    assert found.order[0] == int(np.argmax(differ)) and found.order[-1] == int(np.argmin(differ))
    # Eight of the ten images: the four with most disagreement, then evenly down to the one with least.
    assert [key for key, _, _ in found.examples[:4]] == [found.ids[index] for index in found.order[:4]]
    assert len(found.examples) == 8 and found.examples[-1][0] == found.ids[found.order[-1]]
    for key, image, by_model in found.examples:
        index = found.ids.index(key)
        assert np.array_equal(image, np.asarray(place.load(index)))
        assert all(np.array_equal(by_model[name], predicted[name][index]) for name in models)


def test_estimates_are_calibrated_on_validation_alone(models, domains):
    (found,) = look_at(models, domains, progress=False)
    truth = np.concatenate([domains.validation[0].load(index)[1].ravel() for index in (0, 1)])
    expected = np.bincount(truth[truth < 255], minlength=STREETS.num_labels) / (truth < 255).sum()
    assert found.source == pytest.approx(expected.tolist())
    for by_method in found.estimates.values():
        assert {DEFAULT_METHOD, "agreement", "source"} <= set(by_method)
        assert 0 <= by_method[DEFAULT_METHOD].mean_iou <= 1
    # The labels of an unseen domain are only for comparison: without them the estimates are the same.
    other = Domains(domains.source, domains.validation, [], domains.places)
    (alone,) = look_at(models, other, progress=False)
    assert alone.known == {}
    assert repr(alone.estimates["deft"][DEFAULT_METHOD]) == repr(found.estimates["deft"][DEFAULT_METHOD])
    estimate, score = found.known["fog"]["joint"]
    assert 0 <= score <= 1 and estimate.images == 3


def test_one_model_says_where_it_doubts_and_nothing_is_estimated_without_validation(models, domains):
    alone = {"joint": models["joint"]}
    (found,) = look_at(alone, Domains(domains.source, [], domains.unseen, domains.places), progress=False)
    assert found.estimates == {} and found.known == {} and found.source is None
    image = domains.places[0].load(0)
    assert found.scores[0] == pytest.approx(float(1 - models["joint"].logits(image).softmax(0).max(0).values.mean()))
    assert [table.count("\n") for table in found.tables(STREETS.names)] == [1 + STREETS.num_labels]
    (found,) = look_at(alone, domains, progress=False)
    assert "agreement" not in found.estimates["joint"]


@pytest.mark.parametrize("family", ["mask2former", "eomt"])
def test_probabilities_of_mask_models_are_their_scores_by_their_sum(tmp_path, family):
    exported(tmp_path, family, segmentation_processor(None, (tiny.SIDE, tiny.SIDE)))
    segmenter, image = Segmenter.open(str(tmp_path)), drawn("clear").load(0)[0]
    with torch.no_grad():
        outputs = segmenter.model(segmenter.pixels(image))
    classes, masks = outputs.class_queries_logits.softmax(-1)[..., :-1], outputs.masks_queries_logits.sigmoid()
    scores = interpolate(torch.einsum("bqc,bqhw->bchw", classes, masks), size=SIZE, mode="bilinear")[0]
    found = segmenter.probabilities(image)
    torch.testing.assert_close(found, scores / scores.sum(0))
    assert not torch.allclose(found, scores.softmax(0), atol=0.01)
    night = without_labels(drawn("night"))
    (place,) = look_at({"model": segmenter}, Domains([], [], [], [night]), progress=False)
    confidence = float(segmenter.probabilities(night.load(0)).max(0).values.mean())
    assert place.scores[0] == pytest.approx(1 - confidence)


def test_probabilities_of_pixel_models_are_the_softmax_to_the_bit(models):
    image = drawn("clear").load(0)[0]
    assert torch.equal(models["deft"].probabilities(image), models["deft"].logits(image).softmax(0))


def test_no_place_costs_nothing(models, domains):
    assert look_at(models, Domains(domains.source, domains.validation, domains.unseen)) == []


def test_lists_and_pictures_are_written(models, domains, tmp_path):
    (tmp_path / "client camera").mkdir()
    for index in range(3):
        domains.places[0].load(index).save(tmp_path / "client camera" / f"{index}.png")
    client = domains.places[0].from_folder(tmp_path / "client camera", name="client")
    found = look_at(models, Domains([], [], [], [client]), progress=False)
    write_findings((tmp_path / "out").joinpath, found, STREETS)
    listed = (tmp_path / "out/to_label/client.txt").read_text().splitlines()
    assert listed == [str(tmp_path / "client camera" / f"{found[0].ids[index]}.png") for index in found[0].order]
    tasks = json.loads((tmp_path / "out/to_label/client.label_studio.json").read_text())
    assert tasks[0]["data"]["image"] == f"/data/local-files/?d={listed[0][1:].replace(' ', '%20')}"
    assert tasks[0]["meta"]["score"] == max(found[0].scores)
    assert (tmp_path / "out/figures/places/client.png").stat().st_size > 1000
    facts = json.loads((tmp_path / "out/results/places.json").read_text())
    assert list(facts["client"]["disagreement"]) == [found[0].ids[index] for index in found[0].order]


def test_a_run_an_evaluation_and_their_pages_have_the_place(tmp_path, monkeypatch, unverified):
    monkeypatch.chdir(tmp_path)
    unseen = [{"streets": "night", "count": 2, "seed": 2, "size": [64, 96]}, CLIENT]
    path = write_recipe(
        tmp_path, data={"unseen": unseen}, method={"baselines": ["frozen"]}, training={"max_steps": 1, "save_steps": 1}
    )
    recipe = Recipe.load(path)
    folder = train(recipe)
    facts = json.loads((folder / "results/places.json").read_text())
    assert set(facts["client"]["estimates"]) == {"deft", "frozen"} and facts["client"]["images"] == 3
    assert set(facts["client"]["estimates_where_labels_are"]) == {"night"}
    for page in ("README.md", "report.html"):
        text = (folder / page).read_text()
        assert "Places without labels" in text and "client" in text and "estimated mean IoU" in text
    assert "client" not in json.loads((folder / "results/metrics.json").read_text())["scores"]
    assert (folder / "to_label/client.txt").read_text().splitlines()[0].startswith("00000")
    found = evaluate(folder, recipe, tmp_path / "scores", progress=False)
    assert found.places[0].shares["out"] == pytest.approx(facts["client"]["shares"]["deft"], abs=1e-6)
    assert [path.name for path in found.pictures()] == ["panels.png", "client.png"]
    assert "client, without labels" in (tmp_path / "scores/results/table.md").read_text()


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"section": "source"}, "data.source.0.labels: found none, but only an unseen place may be without labels"),
        ({"section": "validation"}, "data.validation.0.labels: found none"),
        ({"corruption": "fog"}, "data.unseen.0.corruption: found fog beside labels: none"),
        ({"folder": "client", "masks": "classes"}, "data.unseen.0.masks: found beside labels: none"),
        ({"folder": "client", "layout": "cityscapes"}, "data.unseen.0.layout: found beside labels: none"),
        ({"hub": "client", "split": "x", "mask_column": "m"}, "data.unseen.0.mask_column: found beside labels: none"),
        ({"folder": "nowhere"}, "data.unseen.0.folder: found no folder"),
        ({"folder": "client", "images": "photos"}, "data.unseen.0.images: found no folder client/photos"),
    ],
)
def test_what_cannot_be_without_labels_is_refused(entry, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "client").mkdir()
    section = entry.pop("section", "unseen")
    place = {
        "labels": "none",
        **({} if {"folder", "hub"} & entry.keys() else {"streets": "night", "count": 2}),
        **entry,
    }
    with pytest.raises(UserError) as refused:
        Recipe.load(write_recipe(tmp_path, data={section: [place]}))
    assert message in str(refused.value)


def test_something_has_to_be_scored(tmp_path):
    with pytest.raises(UserError, match="data.validation: missing, expected at least one domain to score"):
        Recipe.load(write_recipe(tmp_path, data={"validation": [], "unseen": [CLIENT]}))
