"""`eval_size`, `halve` and `crop_or_pad` in recipes."""

import pytest

from deft_hf.data.roles import Domains, without_labels
from deft_hf.models.processor import segmentation_processor
from deft_hf.recipe import Recipe
from deft_hf.runs.data import evaluation_sets, open_domain
from deft_hf.runs.evaluate import recipe_segmenter, score
from deft_hf.runs.extremes import draw_extremes
from deft_hf.runs.places import look_at
from deft_hf.utils.errors import UserError
from tests import tiny


def recipe(*settings, unseen="{}"):
    overrides = [
        "data.source=[{streets: clear, count: 2, size: [64, 96]}]",
        "data.validation=[{streets: clear, name: val, seed: 1, count: 2, size: [64, 96]}]",
        "data.unseen=[{streets: night, count: 2, size: [64, 96]"
        + (", " + unseen[1:] if unseen != "{}" else "}")
        + "]",
    ]
    return Recipe.load("quickstart", [*overrides, "data.image_size=[64, 96]", "data.crop_size=[32, 32]", *settings])


def shapes(data):
    domains = [open_domain(entry, data) for entry in (*data.validation, *data.unseen)]
    sets = evaluation_sets(data, domains, segmentation_processor(None, None))
    items = {name: items[0] for name, items in sets.items()}
    return {name: (item["pixel_values"].shape[1:], item["labels"].shape) for name, item in items.items()}


def test_by_default_images_are_tested_at_the_image_size():
    assert shapes(recipe("data.image_size=[32, 48]").data) == {
        "val": ((32, 48), (64, 96)),
        "night": ((32, 48), (64, 96)),
    }


@pytest.mark.parametrize(
    "size, shown",
    [
        ("[32, 64]", (32, 64)),
        ("{short: 32}", (32, 48)),
        ("{long: 48}", (32, 48)),
        ("{short: 48, long: 48}", (32, 48)),
        ("own", (64, 96)),
    ],
)
def test_test_sizes(size, shown):
    data = recipe(f"data.eval_size={size}", "data.image_size=[16, 24]", "data.crop_size=[16, 16]").data
    assert shapes(data)["val"] == (shown, (64, 96))


def test_a_domain_has_its_own():
    data = recipe("data.eval_size={short: 32}", unseen="{eval_size: own}").data
    assert shapes(data) == {"val": ((32, 48), (64, 96)), "night": ((64, 96), (64, 96))}


def test_halves_and_squares_change_the_labels_too():
    assert shapes(recipe(unseen="{halve: true, eval_size: own}").data)["night"] == ((32, 48), (32, 48))
    assert shapes(recipe(unseen="{crop_or_pad: 32, eval_size: {long: 16}}").data)["night"] == ((16, 16), (32, 32))


def test_every_command_sees_what_training_sees(tmp_path, monkeypatch):
    asked = recipe("data.eval_size={short: 32}", unseen="{halve: true, eval_size: [32, 64]}")
    data = asked.data
    seen = []
    names = data.label_space().id2label
    tiny.build("segformer", id2label=names).save_pretrained(tmp_path)
    segmentation_processor(None, None).save_pretrained(tmp_path)
    segmenter = recipe_segmenter(str(tmp_path), asked)
    segmenter.model.register_forward_pre_hook(
        lambda module, args: seen.extend([tuple(args[0].shape[2:])] * len(args[0]))
    )
    domains = {entry.name: open_domain(entry, data) for entry in (*data.validation, *data.unseen)}
    found = score(segmenter, [domains["val"]], [domains["night"]], progress=False)
    assert seen == [(32, 48)] * 2 + [(32, 64)] * 2
    assert [truth.shape for _, _, truth, _ in found.examples] == [(64, 96), (32, 48)]
    seen.clear()
    monkeypatch.setattr("deft_hf.runs.extremes.save_overlays", lambda *drawn: None)
    draw_extremes(tmp_path, segmenter, [*domains.values()], found.extremes)
    assert seen == [(32, 48)] * 2 + [(32, 64)] * 2
    seen.clear()
    monkeypatch.setattr("deft_hf.runs.places.CORRUPTIONS", ["brightness"])
    monkeypatch.setattr("deft_hf.runs.places._SEVERITIES", (3,))
    place = without_labels(open_domain(asked.data.source[0], data))
    look_at({"model": segmenter}, Domains([], [domains["val"]], [domains["night"]], [place]), progress=False)
    assert (32, 64) in seen and set(seen[:2]) == {(32, 48)}


@pytest.mark.parametrize(
    "settings, unseen, message",
    [
        (
            ["data.eval_size={short: 4, long: 3}"],
            "{}",
            r"data.eval_size: found .*, expected \[height, width\], \{short",
        ),
        (["data.eval_size={side: 3}"], "{}", "data.eval_size: found"),
        (["data.eval_size={}"], "{}", "data.eval_size: found"),
        (["data.eval_size=half"], "{}", "data.eval_size: found"),
        (["data.eval_size={short: 0}"], "{}", "data.eval_size: found"),
        (["data.source.0.halve=true"], "{}", "data.source.0.halve: found in source"),
        ([], "{halve: true, crop_or_pad: 8}", "data.unseen.0.crop_or_pad: found beside halve"),
        ([], "{pad_label: 0}", "data.unseen.0.pad_label: found 0 without crop_or_pad"),
        ([], "{crop_or_pad: 8, pad_label: no}", "data.unseen.0.pad_label: found false, expected one of ignore, 0"),
        ([], "{crop_or_pad: 8, pad_label: 1}", "data.unseen.0.pad_label: found 1, expected one of ignore, 0"),
    ],
)
def test_mistakes(settings, unseen, message):
    with pytest.raises(UserError, match=message):
        recipe(*settings, unseen=unseen)


def test_a_resolved_recipe_loads_again(tmp_path):
    asked = recipe("data.eval_size={long: 48}", unseen="{crop_or_pad: 32, pad_label: 0, eval_size: own}")
    (tmp_path / "recipe.yaml").write_text(asked.to_yaml(), "utf-8")
    again = Recipe.load(tmp_path / "recipe.yaml")
    assert again.data == asked.data and again.data.eval_size == {"long": 48}
