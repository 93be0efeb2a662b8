"""A folder becomes a recipe that trains as it is written."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from deft_hf.data.presets import PRESETS
from deft_hf.init import main
from deft_hf.recipe import Recipe
from deft_hf.runs.arguments import check_arguments
from deft_hf.runs.data import load_domains
from deft_hf.runs.init import choices, init, propose
from deft_hf.runs.train import train
from deft_hf.utils.errors import UserError, run_command
from deft_hf.utils.machine import Machine
from tests import tiny
from tests.data.annotations import exports
from tests.data.test_layouts import png16

SIZE = (40, 56)
COLORS = [(0, 0, 0), (200, 30, 30), (30, 200, 30)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.build("segformer").segformer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def ids(seed, classes=2):
    """Areas of each class, elsewhere in each picture."""
    rng = np.random.default_rng(seed)
    drawn = np.zeros(SIZE, np.uint8)
    for index in range(1, classes):
        top, left = rng.integers(0, SIZE[0] - 16), rng.integers(0, SIZE[1] // 2) + 8 * index
        drawn[top : top + 16, left : left + 12] = index
    return drawn


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def photo(path, seed=0):
    save(path, np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8))


def pairs(root, images="images/{}.jpg", masks="masks/{}.png", count=6, start=0, drawn=ids):
    for number in range(start, start + count):
        photo(root / images.format(number), number)
        save(root / masks.format(number), drawn(number))


def written(folder, model, **options):
    """The recipe that is written, read, its data opened and everything that training checks before it starts."""
    found = init(folder, model=model, progress=False, overwrite=True, **options)
    recipe = Recipe.load(found.recipe)
    check_arguments(recipe)
    return recipe, load_domains(recipe.data), found


def sections(recipe):
    dumped = yaml.safe_load(recipe.path and open(recipe.path))["data"]
    return {key: dumped[key] for key in ("source", "validation", "unseen")}


# ---- layouts


@pytest.mark.usefixtures("unverified")
def test_pairs_in_one_folder_train_as_they_are(tmp_path, model):
    pairs(tmp_path / "cracks", "IMG_{}.jpg", "IMG_{}_crack.png", drawn=lambda seed: ids(seed) * np.uint8(255))
    recipe, domains, found = written("cracks", model)
    assert recipe.data.labels == {"names": ["background", "object"], "ids": {0: 0, 255: 1}}
    assert sections(recipe) == {
        "source": [{"folder": "cracks", "images": ".", "masks": ".", "mask_suffix": "_crack"}],
        "validation": [{"folder": "cracks", "images": ".", "masks": ".", "mask_suffix": "_crack", "split": 0.2}],
        "unseen": [],
    }
    assert (domains.source[0].ids[0], domains.validation[0].ids) == ("IMG_0", ["IMG_5"])
    assert "background" in str(found) and "give the classes their names" in str(found)
    assert found.command == "accelerate launch -m deft_hf.train recipe.yaml"
    short = ["training.max_steps=2", "training.dataloader_num_workers=0", "method.decoder_warmup_steps=1"]
    folder = train(Recipe.load(found.recipe, short))
    scores = json.loads((folder / "results" / "metrics.json").read_text())
    assert "cracks" in json.dumps(scores) and (folder / "model.safetensors").is_file()


def test_places_are_told_apart_and_unlabelled_ones_kept(tmp_path, model):
    pairs(tmp_path / "sites" / "town", "img/{}.png", "lbl/{}.png", count=8)
    pairs(tmp_path / "sites" / "coast", "img/{}.png", "lbl/{}.png", count=4)
    for number in range(3):
        photo(tmp_path / "sites" / "client" / f"{number}.jpg")
    recipe, domains, found = written("sites", model)
    named = {key: [entry.get("name", entry["folder"]) for entry in each] for key, each in sections(recipe).items()}
    assert named == {
        "source": ["sites/town"],
        "validation": ["sites/town"],
        "unseen": ["sites/coast", "sites/client"],
    }
    assert recipe.data.unseen[1].labels == "none" and len(domains.places[0]) == 3
    assert (len(domains.source[0]), len(domains.validation[0]), len(domains.unseen[0])) == (6, 2, 4)
    assert found.images == {"coast": 4, "town": 8, "client": 3}
    with Image.open(found.sheet) as sheet:
        assert sheet.width > 1200 and len(sheet.convert("RGB").getcolors(sheet.width * sheet.height)) > 1000


@pytest.mark.parametrize(
    "images, masks",
    [("{split}/images/{{}}.jpg", "{split}/masks/{{}}.png"), ("im/{split}/{{}}.jpg", "gt/{split}/{{}}.png")],
)
def test_splits_of_the_set_are_kept(tmp_path, model, images, masks):
    for start, split in enumerate(("train", "val", "test")):
        pairs(tmp_path / "set", images.format(split=split), masks.format(split=split), 3, 10 * start)
    recipe, domains, _ = written("set", model)
    assert [entry.name for entry in (*recipe.data.source, *recipe.data.validation)] == ["set", "set"]
    assert [entry.name for entry in recipe.data.unseen] == ["set_test"]
    (source,), (validation,), (unseen,) = domains.source, domains.validation, domains.unseen
    assert (source.ids, validation.ids, unseen.ids) == (["0", "1", "2"], ["10", "11", "12"], ["20", "21", "22"])


def test_a_split_json_is_used(tmp_path, model):
    pairs(tmp_path / "town")
    (tmp_path / "town" / "split.json").write_text(json.dumps({"train": ["1", "2", "3"], "val": ["0", "4"], "x": []}))
    recipe, domains, _ = written("town", model)
    assert [entry.split for entry in (*recipe.data.source, *recipe.data.validation)] == ["train", "val"]
    assert domains.validation[0].ids == ["0", "4"]


def test_an_official_tree_is_recognised(tmp_path, model):
    for split, city in (("train", "aachen"), ("val", "munster")):
        for number in range(2):
            start = f"{city}_{number:06}_000019"
            photo(tmp_path / "city" / "leftImg8bit" / split / city / f"{start}_leftImg8bit.png", number)
            for kind in ("labelIds", "instanceIds", "color"):
                raw = np.array([7, 26, 23], np.uint8)[ids(number, 3)]
                save(tmp_path / "city" / "gtFine" / split / city / f"{start}_gtFine_{kind}.png", raw)
    recipe, domains, found = written("city", model)
    assert recipe.data.labels == "cityscapes" and recipe.data.source[0].layout == "cityscapes"
    assert recipe.data.augment == "street" and domains.labels == PRESETS["cityscapes"]
    assert found.shares["road"] > 0.5 and found.shares["car"] > 0
    assert "Look at the picture, then:" in str(found)


def test_official_trees_without_splits_and_with_one_to_score_only(tmp_path, model):
    for number in range(4):
        photo(tmp_path / f"roads/synthia/RGB/{number}.png", number)
        labels = tmp_path / f"roads/synthia/GT/LABELS/{number}.png"
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_bytes(png16((ids(number, 3)[..., None].repeat(3, 2) * 5 + 3).astype(">u2")))
        photo(tmp_path / f"roads/zurich/rgb_anon/val/night/{number}_rgb_anon.png", number)
        raw = np.array([7, 26, 23], np.uint8)[ids(number, 3)]
        save(tmp_path / f"roads/zurich/gt/val/night/{number}_gt_labelIds.png", raw)
    recipe, domains, _ = written("roads", model)
    assert sections(recipe)["source"] == [{"folder": "roads/synthia", "layout": "synthia"}]
    assert [len(domain) for domain in (*domains.source, *domains.validation, *domains.unseen)] == [3, 1, 4]
    with pytest.raises(UserError, match="nothing to train on, only the split val of dark_zurich; unpack its training"):
        init("roads/zurich", model=model, progress=False, overwrite=True)


def test_sequences_in_one_set_are_one_place(tmp_path, model):
    for name in "abcdef":
        pairs(tmp_path / "set", f"images/{name}/{{}}.jpg", f"masks/{name}/{{}}.png", 2)
    _, domains, _ = written("set", model)
    held_out = {key.split("/")[0] for key in domains.validation[0].ids}
    assert not held_out & {key.split("/")[0] for key in domains.source[0].ids} and len(held_out) == 1


def coco(root, count=6):
    content = {"images": [], "annotations": [], "categories": [{"id": 4, "name": "house"}]}
    for number in range(count):
        exports.image(root / f"photo_{number}.png", seed=number)
        size = {"width": exports.SIZE[0], "height": exports.SIZE[1]}
        content["images"].append({"id": number, "file_name": f"photo_{number}.png", **size})
        shape = {"id": number, "image_id": number, "category_id": 4, "segmentation": [exports.HOUSE], "iscrowd": 0}
        content["annotations"].append(shape)
    exports.write(root / "annotations.json", content)


def test_an_export_of_a_labelling_tool(tmp_path, model):
    coco(tmp_path / "drone")
    for number in range(2):
        photo(tmp_path / "drone" / "client" / f"{number}.jpg")
    recipe, domains, found = written("drone", model)
    assert recipe.data.labels == {"names": ["background", "house"]} and recipe.data.source[0].annotations == "coco"
    assert len(domains.source[0]) == 5 and domains.validation[0].ids == ["photo_5"]
    assert found.shares["house"] == pytest.approx(200 / 1200)
    assert "# - {folder: drone/client, labels: none}" in found.recipe.read_text("utf-8")
    assert found.images["client"] == 2 and "move that folder out" in found.notes[-1]


def test_unlabelled_images_beside_an_export_are_a_place(tmp_path, model):
    coco(tmp_path / "job" / "drone")
    for number in range(2):
        photo(tmp_path / "job" / "client" / f"{number}.jpg")
    recipe, domains, found = written("job", model)
    assert recipe.data.source[0].name == "drone" and found.images == {"drone": 6, "client": 2}
    assert [(entry.name, entry.labelled) for entry in recipe.data.unseen] == [("client", False)]


def test_areas_that_cover_all_need_no_background(tmp_path, model):
    coco(tmp_path / "drone")
    path = tmp_path / "drone" / "annotations.json"
    content = json.loads(path.read_text("utf-8"))
    size = content["images"][0]
    whole = [[0, 0, size["width"], 0, size["width"], size["height"], 0, size["height"]]]
    content["categories"].append({"id": 9, "name": "grass"})
    grass = [
        {"id": 100 + each["id"], "image_id": each["id"], "category_id": 9, "segmentation": whole, "iscrowd": 0}
        for each in content["images"]
    ]
    content["annotations"] = grass + content["annotations"]
    path.write_text(json.dumps(content), "utf-8")
    recipe, domains, found = written("drone", model)
    assert recipe.data.labels == {"names": ["house", "grass"], "ids": {"background": 255}}
    assert found.shares == {"house": pytest.approx(200 / 1200), "grass": pytest.approx(1000 / 1200)}
    assert "labels cover every pixel" in found.recipe.read_text("utf-8")


def test_exports_in_folders_are_places_and_their_splits_are_kept(tmp_path, model):
    coco(tmp_path / "both" / "north")
    exports.yolo(tmp_path / "both" / "south")
    recipe, domains, _ = written("both", model)
    assert [entry.annotations for entry in (*recipe.data.source, *recipe.data.unseen)] == ["coco", "yolo", "yolo"]
    assert recipe.data.labels["names"] == ["background", "house", "tree"]
    assert [domain.name for domain in domains.evaluated] == ["north", "south_train", "south_val"]


@pytest.mark.parametrize("form", ["roboflow_masks", "yolo"])
def test_splits_of_an_export(tmp_path, model, form):
    getattr(exports, form)(tmp_path / "export")
    recipe, domains, _ = written("export", model)
    assert recipe.data.validation[0].split in ("val", "valid") and recipe.data.source[0].split == "train"


# ---- labels


def test_colours_of_masks_are_the_classes(tmp_path, model):
    pairs(tmp_path / "set", drawn=lambda seed: np.array(COLORS, np.uint8)[ids(seed, 3)])
    (tmp_path / "set" / "labelmap.txt").write_text("# label:color\nsky:0,0,0::\nroof:200,30,30::\ntree:30,200,30::\n")
    recipe, domains, _ = written("set", model)
    assert sorted(recipe.data.labels["names"]) == ["roof", "sky", "tree"]
    index = recipe.data.labels["names"].index("roof")
    assert recipe.data.labels["palette"][index] == [200, 30, 30]
    drawn = ids(0, 3)
    assert ((domains.source[0].load(0)[1] == index) == (drawn == 1)).all()


def test_a_palette_of_indexed_masks_is_kept(tmp_path, model):
    for number in range(6):
        photo(tmp_path / "set" / "images" / f"{number}.jpg", number)
        indexed = Image.fromarray(ids(number, 3))
        indexed.putpalette([channel for color in COLORS for channel in color])
        (tmp_path / "set" / "masks").mkdir(exist_ok=True)
        indexed.save(tmp_path / "set" / "masks" / f"{number}.png")
    recipe, _, _ = written("set", model)
    assert recipe.data.labels == {"names": ["class_0", "class_1", "class_2"], "palette": [list(c) for c in COLORS]}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_instances_are_one_class(tmp_path, model, dtype):
    def cells(seed):
        drawn = np.zeros(SIZE, dtype)
        for number in range(3 + 5 * seed):
            row, column = divmod(number, 9)
            drawn[6 * row + 1 : 6 * row + 5, 6 * column + 1 : 6 * column + 5] = number + 1
        return drawn

    pairs(tmp_path / "cells", "img/{}.png", "instances/{}.png", drawn=cells)
    recipe, domains, _ = written("cells", model)
    assert recipe.data.labels["ids"] == {0: 0, "rest": 1} and recipe.data.augment == "microscopy"
    assert set(np.unique(domains.source[0].load(2)[1])) == {0, 1}


def test_classes_that_look_alike_in_every_mask_are_no_instances(tmp_path, model):
    pairs(tmp_path / "set", drawn=lambda seed: ids(seed, 4))
    assert len(written("set", model)[0].data.labels["names"]) == 4


def test_names_gaps_and_ignored_pixels(tmp_path, model):
    def drawn(seed):
        raw = np.array([0, 2, 5], np.uint8)[ids(seed, 3)]
        raw[:2] = 255
        return raw

    pairs(tmp_path / "set", drawn=drawn)
    recipe, domains, found = written("set", model)
    assert recipe.data.labels == {"names": ["class_0", "class_2", "class_5"], "ids": {0: 0, 2: 1, 5: 2}}
    assert found.shares["ignored"] == pytest.approx(2 / SIZE[0])
    (tmp_path / "set" / "classes.txt").write_text("road\nx\ncar\ny\nz\nsky\n")
    assert written("set", model)[0].data.labels["names"] == ["road", "car", "sky"]


def test_smoothed_edges_are_ignored(tmp_path, model):
    def drawn(seed):
        mask = Image.fromarray(ids(seed) * np.uint8(255)).resize((SIZE[1] * 3, SIZE[0] * 3), Image.Resampling.BICUBIC)
        return np.asarray(
            mask.resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC).rotate(1, Image.Resampling.BICUBIC)
        )

    pairs(tmp_path / "set", drawn=drawn, count=12)
    recipe, _, _ = written("set", model)
    assert recipe.data.labels["ids"] == {0: 0, 255: 1, "rest": 255}


def test_images_of_twelve_bits_get_their_range(tmp_path, model):
    pairs(tmp_path / "set", "img/{}.tif", "gt/{}.png")
    for number in range(6):
        grey = np.random.default_rng(number).integers(0, 4000, SIZE).astype(np.uint16)
        save(tmp_path / "set" / "img" / f"{number}.tif", grey)
    recipe, _, _ = written("set", model)
    assert recipe.data.value_range == (0, 4095)


def test_a_class_is_on_both_sides_where_it_can_be(tmp_path, model):
    # The last fifth has no second class, the last quarter has.
    pairs(tmp_path / "set", "f_{}.jpg", "f_{}_m.png", count=20, drawn=lambda seed: ids(seed, 2 if seed > 15 else 3))
    recipe, domains, found = written("set", model)
    assert recipe.data.validation[0].split == 0.25 and not found.notes
    held_out = [domains.validation[0].load(index)[1] for index in range(len(domains.validation[0]))]
    assert set(np.unique(np.stack(held_out))) == {0, 1, 2}


# ---- refusals, and what is written


def test_folders_that_cannot_be_trained_on(tmp_path, model):
    def refused(folder):
        with pytest.raises(UserError) as caught:
            init(folder, model=model, progress=False)
        assert not (tmp_path / "recipe.yaml").exists() and not (tmp_path / "recipe.png").exists()
        return str(caught.value)

    assert "found no such folder" in refused("nowhere")
    (tmp_path / "empty").mkdir()
    assert "found no image; expected" in refused("empty")
    photo(tmp_path / "photos" / "a.jpg")
    assert "found 1 images and no labels; expected a mask for each" in refused("photos")
    pairs(tmp_path / "one", count=1)
    assert "one labelled image" in refused("one")
    pairs(tmp_path / "flat", drawn=lambda seed: 0 * ids(seed))
    assert "all pixels of all masks are 0" in refused("flat")
    pairs(tmp_path / "blurred", drawn=lambda seed: np.random.default_rng(seed).integers(0, 200, SIZE, np.uint8))
    assert "neither classes nor instances" in refused("blurred")
    pairs(tmp_path / "lossy", masks="masks/{}.jpg")
    assert "compressed by JPEG" in refused("lossy")
    pairs(tmp_path / "mixed")
    save(tmp_path / "mixed" / "masks" / "3.png", np.array(COLORS, np.uint8)[ids(0)])
    assert "holds colours and" in refused("mixed")
    pairs(tmp_path / "unequal")
    save(tmp_path / "unequal" / "masks" / "2.png", ids(0)[:20])
    assert "is 56 x 20 (width x height), but its image" in refused("unequal")


def test_two_formats_at_once_are_both_named(tmp_path, model):
    coco(tmp_path / "both" / "photos")
    pairs(tmp_path / "both" / "more")
    with pytest.raises(UserError, match=r"two formats, coco in both/photos and masks in both/more/masks"):
        propose("both", model=model)
    coco(tmp_path / "two")
    exports.labelme(tmp_path / "two")
    with pytest.raises(UserError, match="two formats, coco and labelme"):
        propose("two", model=model)


def test_nothing_is_replaced_that_init_did_not_write(tmp_path, model):
    pairs(tmp_path / "set")
    options = {"model": model, "progress": False}
    (tmp_path / "recipe.png").write_bytes(b"mine")
    with pytest.raises(UserError, match="recipe.png is not as init wrote it; nothing was touched"):
        init("set", overwrite=True, **options)
    (tmp_path / "recipe.png").unlink()
    found = init("set", **options)
    before = found.recipe.read_text()
    with pytest.raises(UserError, match="recipe.yaml exists already; nothing was touched"):
        init("set", **options)
    init("set", overwrite=True, **options)
    assert found.recipe.read_text() == before
    found.recipe.write_text(before.replace("object", "crack"))
    with pytest.raises(UserError, match="recipe.yaml is not as init wrote it"):
        init("set", overwrite=True, **options)
    assert "crack" in found.recipe.read_text()
    with pytest.raises(UserError, match="expected a file that ends in .yaml"):
        init("set", "recipe", **options)


def test_the_command_prints_what_to_do_next(tmp_path, model, capsys):
    pairs(tmp_path / "set")
    main(["set", "--model", model, "--out", "new/set.yaml"])
    told = capsys.readouterr().out
    assert "Wrote new/set.yaml and new/set.png" in told
    assert told.rstrip().endswith("accelerate launch -m deft_hf.train new/set.yaml")
    main(["set", "--model", model, "--out", "new/set.yaml", "--overwrite", "--json", "--quiet"])
    assert json.loads(capsys.readouterr().out)["images"] == {"set": 6}
    with pytest.raises(SystemExit, match="2"):
        run_command(lambda: main(["nowhere"]), "")
    assert capsys.readouterr().err.startswith("error: nowhere: found no such folder")


def test_a_folder_can_be_looked_at_from_inside(tmp_path, model, monkeypatch):
    pairs(tmp_path / "photos")
    monkeypatch.chdir(tmp_path / "photos")
    for _ in range(2):  # the picture of the first is no image of the second
        recipe, domains, found = written(".", model)
        assert recipe.data.source[0].name == "photos" and found.images == {"photos": 6}


# ---- what depends on the machine


@pytest.mark.parametrize(
    "machine, images, expected",
    [
        (Machine("cpu", cores=2), 5000, "embedded"),
        (Machine("cuda", memory=24 << 30), 5000, "nvidia/mit-b2"),
        (Machine("cuda", memory=24 << 30), 100, "nvidia/mit-b0"),
    ],
)
def test_the_model_fits_data_and_machine(monkeypatch, machine, images, expected):
    monkeypatch.setattr(choices.constants, "is_offline_mode", lambda: expected == "embedded")
    assert choices.choose_model(None, images, machine).section == {"checkpoint": expected}


def test_a_backbone_gets_a_head(tmp_path):
    tiny.backbone("dinov2").save_pretrained(tmp_path / "vit")
    chosen = choices.choose_model(str(tmp_path / "vit"), 100, Machine())
    assert chosen.section == {"backbone": str(tmp_path / "vit"), "head": "dpt"} and chosen.patch == 16
    with pytest.raises(UserError, match="nowhere cannot be read"):
        choices.choose_model("nowhere", 100, Machine())


@pytest.mark.parametrize(
    "sizes, image_size, crop_size",
    [
        ([(240, 320)] * 3, None, (224, 256)),
        ([(1024, 2048)] * 3, (256, 512), (256, 256)),
        ([(3000, 4000), (4000, 3000)], (384, 384), (256, 256)),
        ([(100, 90), (80, 120)], None, (64, 64)),
        ([(20, 20)], None, (32, 32)),
    ],
)
def test_sizes_follow_the_images(model, sizes, image_size, crop_size):
    machine = Machine("cpu", cores=2)
    found = choices.choose_sizes(sizes, choices.choose_model(model, 10, machine), machine)
    assert (found.image_size, found.crop_size) == (image_size, crop_size)
    assert ("not resized" in found.why_crop) == (image_size is None)
