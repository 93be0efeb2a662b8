"""`data.sampling` in recipes: what it makes, and what stands beside another one."""

import pytest

from deft_hf.data.samplers import ClassUniform, RareClass
from deft_hf.recipe import Recipe
from deft_hf.runs.data import class_samplers, open_domain
from deft_hf.utils.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets"


def data(*settings):
    overrides = ["data.source=[{streets: clear, count: 3, size: [64, 96]}]", "data.image_size=[64, 96]"]
    return Recipe.load("quickstart", [*overrides, "data.crop_size=[64, 64]", *settings]).data


def samplers(section):
    return class_samplers(section, [open_domain(entry, section) for entry in section.source])


def test_by_default_there_is_none(own_cache):
    assert samplers(data()) is None and not own_cache.exists()


def test_class_uniform(own_cache):
    (sampler,) = samplers(data("data.sampling=class_uniform", "data.class_uniform_share=0.25"))
    assert isinstance(sampler, ClassUniform) and sampler.share == 0.25
    assert {len(rows) for rows in sampler.centroids} <= {1, 2, 3}, "one tile an image"
    (finer,) = samplers(data("data.sampling=class_uniform", "data.class_uniform_tile=32"))
    assert max(len(rows) for rows in finer.centroids) > 3
    assert len([*(own_cache / "deft_hf" / "class_index").iterdir()]) == 2


def test_a_run_says_what_it_draws(capsys):
    section = data("data.sampling=rare_class", "data.rare_class_temperature=0.5")
    (sampler,) = samplers(section)
    told = capsys.readouterr().out
    rarest = section.label_space().names[sampler.classes[sampler.probabilities.argmax()]]
    assert f"clear: crops by class: {rarest} {sampler.probabilities.max():.1%}, " in told
    samplers(data("data.sampling=class_uniform"))
    assert "clear: 50% of the crops by " in capsys.readouterr().out


def test_rare_class_scales_its_pixels_by_the_crop():
    (sampler,) = samplers(data("data.sampling=rare_class"))
    assert isinstance(sampler, RareClass) and sampler.crop_pixels == round(1500 / 64)
    (stated,) = samplers(data("data.sampling=rare_class", "data.rare_class_crop_pixels=7", "data.rare_class_pixels=9"))
    assert stated.crop_pixels == 7


@pytest.mark.parametrize(
    "settings, message",
    [
        (["data.class_uniform_share=0.3"], "data.class_uniform_share: found 0.3 beside data.sampling: uniform"),
        (["data.sampling=class_uniform", "data.rare_class_pixels=5"], "set rare_class there, or remove it"),
        (["data.sampling=rare"], "one of uniform, class_uniform, rare_class"),
        (["data.sampling=class_uniform", "data.class_uniform_share=1.5"], "a share, above 0 and at most 1"),
        (["data.sampling=rare_class", "data.rare_class_temperature=0"], "rare_class_temperature"),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        data(*settings)


def test_a_resolved_recipe_loads_again(tmp_path):
    recipe = Recipe.load("quickstart", ["data.sampling=rare_class"])
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), "utf-8")
    assert Recipe.load(tmp_path / "recipe.yaml").data.sampling == "rare_class"
