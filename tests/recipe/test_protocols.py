"""`data.protocol`: what it fills in, and how it reads."""

import pytest
import yaml

from deft_hf.recipe import Recipe
from deft_hf.recipe.protocols import PROTOCOLS, described
from deft_hf.train import main
from deft_hf.utils.errors import UserError
from tests.recipe.test_recipes import draw_tree

SCORED = ("cityscapes", "bdd100k", "mapillary")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trees")
    draw_tree(folder / "gtav", "gtav", "train")
    for layout in SCORED:
        draw_tree(folder / layout, layout, "val")
    return folder


@pytest.fixture
def load(root):
    def load(*settings):
        unseen = ", ".join(f"{{folder: {layout}, layout: {layout}, split: val}}" for layout in SCORED)
        text = "model: {checkpoint: embedded}\ntraining: {output_dir: out}\ndata:\n  labels: cityscapes\n"
        text += f"  root: {root}\n  source: [{{folder: gtav, layout: gtav, split: train}}]\n  unseen: [{unseen}]\n"
        path = root / "recipe.yaml"
        path.write_text(text, "utf-8")
        return Recipe.load(path, settings)

    return load


def scored(data):
    return [(entry.eval_size, entry.halve, entry.crop_or_pad, entry.pad_label, entry.labels) for entry in data.unseen]


PLAIN = (None, False, None, "ignore", None)
HALVED = (True, None, "ignore", "mapillary_rein")
WITHIN = {short: {"short": short, "long": long} for short, long in ((512, 1024), (720, 1280), (1024, 2048))}
EXPECTED = {
    "robustnet": ((768, 768), None, "own", None, [PLAIN, PLAIN, (None, False, 1536, 0, None)]),
    "daformer": ((512, 512), (720, 1280), WITHIN[512], None, [PLAIN] * 3),
    "hrda": ((1024, 1024), (1440, 2560), WITHIN[1024], (1024, 1024), [PLAIN] * 3),
    "rein": ((512, 512), (512, 931), "own", (512, 512), [
        (WITHIN[512], *PLAIN[1:]), (WITHIN[720], *PLAIN[1:]), (WITHIN[512], *HALVED)]),
    "soma": ((512, 512), (512, 931), "own", (512, 512), [
        (WITHIN[1024], *PLAIN[1:]), (WITHIN[720], *PLAIN[1:]), (WITHIN[1024], *HALVED)]),
}  # fmt: skip


@pytest.mark.parametrize("name", PROTOCOLS)
def test_what_it_fills_in(name, load):
    data = load(f"data.protocol={name}").data
    assert (data.crop_size, data.image_size, data.eval_size, data.window, scored(data)) == EXPECTED[name]
    assert data.photometric_distortion == (data.color_jitter is None) == (name != "robustnet")


def test_what_is_stated_wins(load):
    stated = ["data.crop_size=[256, 256]", "data.unseen.0.eval_size=own", "data.blur=[0, 1]"]
    data = load("data.protocol=rein", *stated).data
    assert (data.crop_size, data.unseen[0].eval_size, data.blur) == ((256, 256), "own", (0, 1))
    assert "as the recipe states: data.blur, data.crop_size" in described(data)
    jittered = load("data.protocol=rein", "data.color_jitter=[0.1, 0.1, 0.1, 0]", "data.window=[96, 96]").data
    assert not jittered.photometric_distortion and jittered.stride is None


def test_what_is_stated_takes_the_place_of_what_goes_with_it(load):
    distorted = load("data.protocol=robustnet", "data.photometric_distortion=true").data
    assert distorted.color_jitter is None and distorted.blur == (0.15, 1.3)
    assert load("data.protocol=robustnet", "data.photometric_distortion=false").data.color_jitter is not None
    assert load("data.protocol=rein", "data.color_jitter=null").data.photometric_distortion
    for setting, expected in (
        ("halve=true", (True, None, "ignore")),
        ("crop_or_pad=null", (False, None, "ignore")),
        ("crop_or_pad=1024", (False, 1024, 0)),
    ):
        entry = load("data.protocol=robustnet", f"data.unseen.2.{setting}").data.unseen[2]
        assert (entry.halve, entry.crop_or_pad, entry.pad_label) == expected
    entry = load("data.protocol=rein", "data.unseen.2.crop_or_pad=64").data.unseen[2]
    assert (entry.halve, entry.crop_or_pad, entry.labels) == (False, 64, "mapillary_rein")
    own = load("data.protocol=rein", "data.labels={names: [road, rest], ids: {13: 0, rest: 1}}").data
    assert own.unseen[2].labels is None and own.unseen[2].halve


def test_it_reads_like_a_paper(load):
    assert described(load("data.protocol=rein").data).splitlines() == [
        "# protocol rein (Rein: Wei et al., CVPR 2024, https://arxiv.org/abs/2312.04265)",
        "#   training on gtav: images at 512 x 931; scaled by 0.5 to 2.0; crops of 512 x 512; no class above 75% of a "
        "crop; flipped with probability 0.5; PhotoMetricDistortion; every image once an epoch",
        "#   test: cityscapes at short side 512, long at most 1024; bdd100k at short side 720, long at most 1280; "
        "mapillary at short side 512, long at most 1024 (images and labels halved, labels mapillary_rein)",
        "#   inference: sliding windows of 512 x 512, stride 341 x 341; scores at the size of the labels",
    ]
    robustnet = described(load("data.protocol=robustnet").data)
    assert "mapillary at their own size (images and labels cropped or padded to 1536, padding is 0)" in robustnet
    assert "class-uniform sampling (share 0.5, tiles of 1024)" in robustnet and "of a crop" not in robustnet
    more = ["data.recolor=true", "data.style=randconv", "data.test_flip=true", "data.test_scales=[0.5, 1]"]
    said = described(load("data.protocol=robustnet", "data.eval_size={long: 64}", *more).data)
    assert "the style randconv with probability 0.5; a LAB-recolored copy of each crop; class-uniform" in said
    assert "whole images; mean over the scales 0.5, 1.0, each mirrored too; scores" in said
    assert "bdd100k at long side 64;" in said
    assert described(load().data) == ""


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_dry_run_prints_it_above_the_recipe(name, load, root, capsys):
    asked = load(f"data.protocol={name}")
    main([str(root / "recipe.yaml"), f"data.protocol={name}", "--dry-run"])
    printed = capsys.readouterr().out
    said = described(asked.data)
    assert said + "\n" in printed and not (root / "out").exists()
    assert f"protocol {name} (" in said and PROTOCOLS[name].source in said
    again = yaml.safe_load(printed[printed.index(said) :])
    assert again["data"]["protocol"] == name and again["data"]["crop_size"] == [*asked.data.crop_size]


def test_other_sources_state_their_size(load):
    with pytest.raises(UserError, match="data.image_size: missing, as data.protocol: hrda has a size for sources"):
        streets = ["data.labels=streets", "data.unseen=[{streets: night, count: 1}]"]
        load("data.protocol=hrda", "data.source=[{streets: clear, count: 2}]", *streets)
    with pytest.raises(UserError, match='data.protocol: found "reins", expected one of robustnet'):
        load("data.protocol=reins")


def test_a_resolved_recipe_loads_again(load, tmp_path):
    asked = load("data.protocol=soma")
    (tmp_path / "again.yaml").write_text(described(asked.data) + "\n" + asked.to_yaml(), "utf-8")
    assert Recipe.load(tmp_path / "again.yaml").to_yaml() == asked.to_yaml()
