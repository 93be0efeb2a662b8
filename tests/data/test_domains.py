import io
import json
import os

import datasets
import numpy as np
import pytest
from PIL import Image

from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.data.streets import LOOKS, STREETS, draw_street
from deft_hf.utils.errors import UserError

LABELS = LabelSpace(("ground", "thing", "sky"))
ORIENTATION = 0x0112


def pixels(seed, size=(12, 16)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def ids(seed, size=(12, 16)):
    return np.random.default_rng(seed).choice([0, 1, 2, 255], size).astype(np.uint8)


def write(array, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    """Four sound pairs, one of them nested, in a folder called `town`."""
    root = tmp_path / "town"
    for seed, key in enumerate(("a", "b", "far/c", "d")):
        write(pixels(seed), root / "images" / f"{key}.png")
        write(ids(seed), root / "masks" / f"{key}.png")
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


# --- folders


def test_pairs_are_found_by_relative_path_and_stem(folder):
    domain = Domain.from_folder(folder, LABELS)
    assert domain.name == "town" and len(domain) == 4 and domain.ids == ["a", "b", "d", "far/c"]
    assert isinstance(domain.dataset, datasets.Dataset) and set(domain.dataset.column_names) == {"id", "image", "mask"}
    image, mask = domain.load(3)
    assert image.mode == "RGB" and mask.dtype == np.uint8
    np.testing.assert_array_equal(np.asarray(image), pixels(2))
    np.testing.assert_array_equal(mask, ids(2))


def test_image_and_mask_may_have_different_file_types(tmp_path):
    write(pixels(0), tmp_path / "images" / "a.JPG")
    write(ids(0), tmp_path / "masks" / "a.png")
    assert Domain.from_folder(tmp_path, LABELS).ids == ["a"]


def test_suffixes_pick_files_and_leave_the_id(tmp_path):
    for city, frame in (("aachen", "aachen_000001"), ("bochum", "bochum_000001")):
        write(pixels(0), tmp_path / "leftImg8bit" / "train" / city / f"{frame}_leftImg8bit.png")
        for kind in ("labelIds", "color", "instanceIds"):
            write(ids(1), tmp_path / "gtFine" / "train" / city / f"{frame}_gtFine_{kind}.png")
        (tmp_path / "gtFine" / "train" / city / f"{frame}_gtFine_polygons.json").write_text("{}")
    domain = Domain.from_folder(
        tmp_path,
        LABELS,
        images="leftImg8bit/train",
        masks="gtFine/train",
        image_suffix="_leftImg8bit",
        mask_suffix="_gtFine_labelIds",
    )
    assert domain.ids == ["aachen/aachen_000001", "bochum/bochum_000001"]
    assert domain.report.masks_without_image == []


def test_orphans_are_left_out_and_named(folder):
    write(pixels(0), folder / "images" / "alone.png")
    for key in ("x", "y"):
        write(ids(0), folder / "masks" / "far" / f"{key}.png")
    (folder / "images" / "notes.txt").write_text("not an image")
    (folder / "images" / "._a.png").write_bytes(b"left by a file manager")
    domain = Domain.from_folder(folder, LABELS)
    assert len(domain) == 4
    assert domain.report.images_without_mask == ["alone"]
    assert domain.report.masks_without_image == ["far/x", "far/y"]
    checked = domain.check()
    checked.raise_if_bad()
    assert "masks without an image, left out: 2\n    far/x\n    far/y" in str(checked)


def test_nothing_is_decoded_before_it_is_loaded(folder):
    for kind in ("images", "masks"):
        (folder / kind / "a.png").write_bytes(b"no picture at all")
    domain = Domain.from_folder(folder, LABELS)
    assert len(domain) == 4
    with pytest.raises(UserError, match=r"images/a\.png: cannot be read"):
        domain.load(0)


@pytest.mark.parametrize("missing", ["images", "masks"])
def test_a_missing_or_empty_folder_is_named(tmp_path, missing):
    for kind in {"images", "masks"} - {missing}:
        write(ids(0), tmp_path / kind / "a.png")
    with pytest.raises(UserError, match=f"{missing}: no such folder"):
        Domain.from_folder(tmp_path, LABELS)
    (tmp_path / missing).mkdir()
    with pytest.raises(UserError, match=f"{missing}: holds no file that ends in"):
        Domain.from_folder(tmp_path, LABELS)


def test_names_pair_in_whichever_unicode_form_they_are_written(tmp_path):
    composed, decomposed = "stra\u00dfe_\u00fc", "stra\u00dfe_u\u0308"
    write(pixels(0), tmp_path / "images" / f"{decomposed}.png")
    write(ids(0), tmp_path / "masks" / f"{composed}.png")
    (tmp_path / "split.json").write_text(json.dumps({"train": [decomposed], "val": [composed]}))
    for split in (None, "train", "val"):
        domain = Domain.from_folder(tmp_path, LABELS, split=split)
        assert domain.ids == [composed]
        np.testing.assert_array_equal(domain.load(0)[1], ids(0))


def test_a_name_that_is_no_utf8_is_one_message(folder):
    os.rename(folder / "images" / "a.png", os.fsencode(folder / "images") + b"/\xff.png")
    with pytest.raises(UserError, match=r"udcff\.png': the name is not valid UTF-8; rename"):
        Domain.from_folder(folder, LABELS)


def test_files_that_do_not_pair_are_shown(tmp_path):
    write(pixels(0), tmp_path / "images" / "a_rgb.png")
    write(ids(0), tmp_path / "masks" / "a_ids.png")
    with pytest.raises(UserError, match="'a_rgb' and 'a_ids'.*image_suffix and mask_suffix"):
        Domain.from_folder(tmp_path, LABELS)


def test_two_files_of_one_id_are_refused(folder):
    write(pixels(0), folder / "images" / "a.jpg")
    with pytest.raises(UserError, match=r"same id \(a\)"):
        Domain.from_folder(folder, LABELS)


def test_a_split_keeps_its_list(folder):
    (folder / "split.json").write_text(json.dumps({"train": ["far/c", "a"], "val": ["b"]}))
    assert Domain.from_folder(folder, LABELS, split="train").ids == ["far/c", "a"]
    assert Domain.from_folder(folder, LABELS, split="val").ids == ["b"]
    assert len(Domain.from_folder(folder, LABELS)) == 4


@pytest.mark.parametrize(
    "content, message",
    [
        (None, r"split\.json: no such file"),
        ("{", r"split\.json: is no valid JSON"),
        ("[]", r"split\.json: has no split 'val'"),
        ('{"train": ["a"], "test": ["b"]}', r"split\.json: has no split 'val'; found train, test"),
        ('{"val": {"a": 1}}', "expected a list of ids"),
        ('{"val": [["a"]]}', "expected a list of ids"),
        ('{"val": []}', "'val' is empty"),
        ('{"val": ["a", "a"]}', "lists an id more than once"),
        ('{"val": ["a", "b.png", "e"]}', r"2 of the 3 ids of 'val' are no pairs: b\.png, e; .* such as 'a'"),
    ],
)
def test_a_split_that_does_not_fit_is_refused(folder, content, message):
    if content is not None:
        (folder / "split.json").write_text(content)
    with pytest.raises(UserError, match=message):
        Domain.from_folder(folder, LABELS, split="val")


# --- pictures


def test_exif_turns_images_and_never_masks(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # shown turned by 90 degrees clockwise
    write(pixels(0, (12, 16)), tmp_path / "images" / "a.png", exif=exif)
    write(ids(0, (16, 12)), tmp_path / "masks" / "a.png", exif=exif)
    image, mask = Domain.from_folder(tmp_path, LABELS).load(0)
    np.testing.assert_array_equal(np.asarray(image), np.rot90(pixels(0, (12, 16)), -1))
    np.testing.assert_array_equal(mask, ids(0, (16, 12)))


def test_a_mask_that_fits_the_image_before_its_turn_is_explained(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    write(pixels(0), tmp_path / "images" / "a.png", exif=exif)
    write(ids(0), tmp_path / "masks" / "a.png")
    with pytest.raises(UserError, match=r"masks/a\.png: is 16 x 12 .* is 12 x 16; .*EXIF orientation"):
        Domain.from_folder(tmp_path, LABELS).load(0)


def test_16_bit_grey_images_keep_their_range(tmp_path):
    grey = np.linspace(0, 65535, 192).astype(np.uint16).reshape(12, 16)
    write(grey, tmp_path / "images" / "a.png")
    write(ids(0), tmp_path / "masks" / "a.png")
    image = np.asarray(Domain.from_folder(tmp_path, LABELS).load(0)[0]).astype(int)
    assert np.abs(image - grey[..., None] / 257).max() <= 1


@pytest.mark.parametrize("mode, suffix", [("L", "tif"), ("P", "tif"), ("RGBA", "tif"), ("CMYK", "jpg")])
def test_images_of_any_mode_become_rgb(tmp_path, mode, suffix):
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels(0)).convert(mode).save(tmp_path / "images" / f"a.{suffix}")
    write(ids(0), tmp_path / "masks" / "a.png")
    assert Domain.from_folder(tmp_path, LABELS).load(0)[0].mode == "RGB"


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def spoil(folder):
    """Spoils every pair but `a` of a folder, each in another way."""
    (folder / "images" / "b.png").unlink()
    write(pixels(1, (64, 64)), folder / "images" / "b.jpg")
    write(ids(1, (64, 64)), folder / "masks" / "b.png")
    truncate(folder / "images" / "b.jpg")
    write(ids(2, (12, 15)), folder / "masks" / "far" / "c.png")
    write(np.full((12, 16), 9, np.uint8), folder / "masks" / "d.png")


@pytest.mark.parametrize(
    "key, message",
    [
        ("b", r"images/b\.jpg: cannot be read \(.*truncated"),
        ("far/c", r"masks/far/c\.png: is 15 x 12 .*images/far/c\.png is 16 x 12"),
        ("d", r"masks/d\.png: found the ids 9, expected 0\.\.2"),
    ],
)
def test_a_spoiled_file_is_named(folder, key, message):
    spoil(folder)
    with pytest.raises(UserError, match=message):
        Domain.from_folder(folder, LABELS).select([key]).load(0)


def test_check_names_all_that_is_wrong_in_one_pass(folder):
    spoil(folder)
    truncate(folder / "masks" / "b.png")
    write(pixels(0), folder / "images" / "alone.png")
    domain = Domain.from_folder(folder, LABELS)
    report = domain.check()
    assert report.pairs == report.checked == 4
    assert report.images_without_mask == ["alone"]
    assert [message.split(":")[0].rsplit("/", 1)[1] for message in report.unreadable] == ["b.jpg", "b.png"]
    assert len(report.unequal) == len(report.outside) == 1
    with pytest.raises(UserError) as caught:
        report.raise_if_bad()
    for part in ("unreadable files: 2", "b.jpg", "unequal size: 1", "c.png", "outside the label space: 1", "d.png"):
        assert part in str(caught.value)
    assert "alone" not in str(caught.value)
    assert domain.report.unreadable == [], "the report of the pairing is left alone"


def test_check_counts_every_pixel_once(folder):
    write(pixels(9, (5, 4)), folder / "images" / "e.png")
    write(ids(9, (5, 4)), folder / "masks" / "e.png")
    report = Domain.from_folder(folder, LABELS).check()
    report.raise_if_bad()
    every = np.concatenate([ids(seed).ravel() for seed in range(4)] + [ids(9, (5, 4)).ravel()])
    for index, name in enumerate(LABELS.names):
        assert report.shares[name] == pytest.approx((every == index).mean())
    assert report.ignored_share == pytest.approx((every == 255).mean())
    assert report.sizes == {(12, 16): 4, (5, 4): 1}


def test_a_report_reads_well(tmp_path):
    write(pixels(0, (2, 4)), tmp_path / "town" / "images" / "a.png")
    write(np.array([[0, 0, 0, 0], [0, 0, 1, 255]], np.uint8), tmp_path / "town" / "masks" / "a.png")
    assert str(Domain.from_folder(tmp_path / "town", LABELS).check()).splitlines() == [
        "town: 1 pairs",
        "  sizes (height x width): 2 x 4 (1)",
        "  ground    75.00%",
        "  thing     12.50%",
        "  sky        0.00%  no pixel",
        "  ignored   12.50%",
    ]


def test_long_lists_are_cut(folder):
    for index in range(8):
        write(pixels(0), folder / "images" / f"lonely{index}.png")
    text = str(Domain.from_folder(folder, LABELS).report)
    assert "without a mask, left out: 8" in text and "lonely4" in text and "and 3 more" in text
    assert "lonely5" not in text


# --- parts of a domain


def test_select_takes_ids_or_positions(folder):
    domain = Domain.from_folder(folder, LABELS)
    assert domain.select(["far/c", "a"]).ids == ["far/c", "a"]
    assert domain.select(range(1, 3)).ids == ["b", "d"]
    assert domain.select([3, 0]).select([1]).ids == ["a"]
    np.testing.assert_array_equal(domain.select(["far/c"]).load(0)[1], ids(2))
    with pytest.raises(UserError, match="town: has no pair c; its ids look like 'a'"):
        domain.select(["a", "c"])


# --- data sets in the Hub's format


def encoded(array, file_type="PNG"):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, file_type)
    return stream.getvalue()


def hub_rows(**columns):
    """Three pairs as a user would store them: decoded image features, columns with other names."""
    features = datasets.Features(
        {"pixel_values": datasets.Image(), "annotation": datasets.Image()}
        | {name: datasets.Value("string") for name in columns}
    )
    rows = {
        "pixel_values": [{"bytes": encoded(pixels(seed)), "path": None} for seed in range(3)],
        "annotation": [{"bytes": encoded(ids(seed)), "path": None} for seed in range(3)],
    }
    return datasets.Dataset.from_dict(rows | columns, features=features)


def check_hub_pairs(domain):
    assert len(domain) == 3
    for index in range(3):
        image, mask = domain.load(index)
        np.testing.assert_array_equal(np.asarray(image), pixels(index))
        np.testing.assert_array_equal(mask, ids(index))


COLUMNS = {"image_column": "pixel_values", "mask_column": "annotation"}


def test_a_folder_of_parquet_files(tmp_path, cache):
    (tmp_path / "set").mkdir()
    hub_rows().to_parquet(tmp_path / "set" / "validation-00000-of-00001.parquet")
    domain = Domain.from_hub(tmp_path / "set", LABELS, "validation", **COLUMNS)
    assert domain.name == "set" and domain.ids == ["000000", "000001", "000002"]
    check_hub_pairs(domain)
    domain.check().raise_if_bad()


def test_one_parquet_file(tmp_path, cache):
    hub_rows().to_parquet(tmp_path / "set.parquet")
    check_hub_pairs(Domain.from_hub(str(tmp_path / "set.parquet"), LABELS, "train", name="x", **COLUMNS))


@pytest.mark.parametrize("as_dict", [True, False])
def test_a_folder_of_save_to_disk(tmp_path, as_dict):
    rows = hub_rows()
    (datasets.DatasetDict(train=rows) if as_dict else rows).save_to_disk(tmp_path / "set")
    check_hub_pairs(Domain.from_hub(tmp_path / "set", LABELS, "train", **COLUMNS))
    sliced = Domain.from_hub(tmp_path / "set", LABELS, "train[2:]+train[:1]", **COLUMNS)
    expected = Domain.from_hub(tmp_path / "set", LABELS, "train", **COLUMNS)
    assert [sliced.load(i)[1].tolist() for i in range(2)] == [expected.load(i)[1].tolist() for i in (2, 0)]
    with pytest.raises(UserError, match="split 'test' cannot be loaded: Unknown split \"test\".*train"):
        Domain.from_hub(tmp_path / "set", LABELS, "test", **COLUMNS)
    for content, error in (("{}", "KeyError"), ("[]", "TypeError"), ("{", "")):
        (tmp_path / "set" / ("dataset_dict.json" if as_dict else "state.json")).write_text(content)
        with pytest.raises(UserError, match=f"split 'train' cannot be loaded: .*{error}"):
            Domain.from_hub(tmp_path / "set", LABELS, "train", **COLUMNS)


def test_an_image_folder_with_metadata(tmp_path, cache):
    for seed in range(3):
        write(pixels(seed), tmp_path / "set" / "train" / f"{seed}.png")
        write(ids(seed), tmp_path / "set" / "train" / f"{seed}_mask.png")
    lines = ["file_name,mask_file_name", *(f"{seed}.png,{seed}_mask.png" for seed in range(3))]
    (tmp_path / "set" / "train" / "metadata.csv").write_text("\n".join(lines))
    check_hub_pairs(Domain.from_hub(tmp_path / "set", LABELS, "train"))


def test_images_stored_as_plain_structs(tmp_path, cache):
    cells = [{"bytes": encoded(pixels(seed)), "path": None} for seed in range(3)]
    masks = [{"bytes": encoded(ids(seed)), "path": None} for seed in range(3)]
    datasets.Dataset.from_dict({"image": cells, "mask": masks}).to_parquet(tmp_path / "set.parquet")
    check_hub_pairs(Domain.from_hub(tmp_path / "set.parquet", LABELS, "train"))


@pytest.mark.parametrize(
    "stored_ids, expected",
    [(["x", "y", "z"], ["x", "y", "z"]), (["x", "x", "z"], ["000000", "000001", "000002"])],
)
def test_ids_of_the_set_are_kept_where_they_are_distinct(tmp_path, stored_ids, expected):
    hub_rows(id=stored_ids).save_to_disk(tmp_path / "set")
    assert Domain.from_hub(tmp_path / "set", LABELS, "train", **COLUMNS).ids == expected


def test_a_domain_can_be_stored_and_taken_up_again(folder, tmp_path, cache):
    domain = Domain.from_folder(folder, LABELS)
    domain.dataset.to_parquet(tmp_path / "town.parquet")
    again = Domain.from_hub(tmp_path / "town.parquet", LABELS, "train")
    assert again.ids == domain.ids
    np.testing.assert_array_equal(again.load(3)[1], domain.load(3)[1])


def test_missing_columns_are_answered_with_those_there_are(tmp_path):
    hub_rows(caption=["a", "b", "c"]).save_to_disk(tmp_path / "set")
    with pytest.raises(UserError, match="no column image or mask; its columns are pixel_values, annotation, caption"):
        Domain.from_hub(tmp_path / "set", LABELS, "train")


def test_a_column_of_numbers_holds_no_images(tmp_path):
    datasets.Dataset.from_dict({"image": [1, 2], "mask": [1, 2]}).save_to_disk(tmp_path / "set")
    with pytest.raises(UserError, match="column image holds Value.*int64.*expected images"):
        Domain.from_hub(tmp_path / "set", LABELS, "train")


def test_an_empty_cell_is_named(tmp_path):
    rows = hub_rows().cast_column("annotation", datasets.Image(decode=False)).to_dict()
    rows["annotation"][1] = None
    features = datasets.Features({"pixel_values": datasets.Image(), "annotation": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    domain = Domain.from_hub(tmp_path / "set", LABELS, "train", **COLUMNS)
    with pytest.raises(UserError, match=r"set/000001 \(mask\): the row holds no file"):
        domain.load(1)
    assert len(domain.check().unreadable) == 1


def test_a_set_that_is_not_there_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match="nowhere: split 'train' cannot be loaded"):
        Domain.from_hub(tmp_path / "nowhere", LABELS, "train")


# --- streets


def test_streets_depend_on_look_seed_and_index_alone():
    few = Domain.from_streets(LOOKS[0], count=2, seed=3, size=(24, 32))
    more = Domain.from_streets(LOOKS[0], count=3, seed=3, size=(24, 32), name="drawn")
    assert few.name == LOOKS[0] and more.name == "drawn" and few.labels is STREETS and len(more) == 3
    drawn = {more.load(index)[0].tobytes() for index in range(3)}
    assert len(drawn) == 3
    for index in range(2):
        assert few.load(index)[0].tobytes() == more.load(index)[0].tobytes()
        np.testing.assert_array_equal(few.load(index)[1], more.load(index)[1])
    other_seed = Domain.from_streets(LOOKS[0], count=2, seed=4, size=(24, 32))
    assert drawn.isdisjoint(other_seed.load(index)[0].tobytes() for index in range(2))


def test_streets_hold_what_is_drawn():
    image, mask = Domain.from_streets(LOOKS[0], count=1, seed=5, size=(24, 32)).load(0)
    seed = int(np.random.SeedSequence((5, 0)).generate_state(1)[0])
    expected_image, expected_mask = draw_street(LOOKS[0], seed, (24, 32))
    np.testing.assert_array_equal(np.asarray(image), expected_image)
    np.testing.assert_array_equal(mask, expected_mask)


def test_streets_may_be_read_with_other_classes():
    labels = LabelSpace(("road", "rest"), ids={index: min(index, 1) for index in range(STREETS.num_labels)})
    domain = Domain.from_streets(LOOKS[0], labels, count=1, size=(24, 32))
    plain = Domain.from_streets(LOOKS[0], count=1, size=(24, 32))
    np.testing.assert_array_equal(domain.load(0)[1], np.minimum(plain.load(0)[1], 1))


def test_streets_refuse_what_they_cannot_draw():
    with pytest.raises(UserError, match=f"found the look 'sunny', expected one of {LOOKS[0]}"):
        Domain.from_streets("sunny", count=1)
    with pytest.raises(UserError, match="found count 0"):
        Domain.from_streets(LOOKS[0], count=0)


def test_a_share_of_the_pairs_is_a_split(tmp_path):
    for index in range(10):
        write(pixels(index), tmp_path / "images" / f"frame_{index}.jpg")
        write(ids(index), tmp_path / "masks" / f"frame_{index}.png")
    first, rest = (Domain.from_folder(tmp_path, LABELS, split=share) for share in (0.8, -0.2))
    assert first.ids == [f"frame_{index}" for index in range(8)] and rest.ids == ["frame_8", "frame_9"]


@pytest.mark.parametrize(
    "masks, names, options",
    [
        (".", "{}_mask.png", {"mask_suffix": "_mask"}),
        (".", "{}.png", {"image_suffix": ".jpg", "mask_suffix": ".png"}),
        ("drawn", "{}.png", {}),
    ],
)
def test_masks_beside_and_below_their_images_are_no_images(tmp_path, masks, names, options):
    for index in range(3):
        write(pixels(index), tmp_path / f"{index}.jpg")
        write(ids(index), tmp_path / masks / names.format(index))
    domain = Domain.from_folder(tmp_path, LABELS, images=".", masks=masks, **options)
    assert domain.ids == ["0", "1", "2"]
    assert not domain.report.images_without_mask and not domain.report.masks_without_image
    assert all(row["image"]["path"].endswith(".jpg") for row in domain.dataset)
