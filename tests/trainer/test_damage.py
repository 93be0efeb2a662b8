"""Damaged checkpoints, recipes, images, masks and lists: each is one message, or a warning and the last good state."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from deft_hf.train import main
from deft_hf.utils import integrity
from deft_hf.utils.errors import run_command
from tests.trainer.test_trainer import Drawn, everything, trainer

SIZE = (24, 32)

# ---- checkpoints


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three steps with a checkpoint after each, and what it ends with."""
    folder = tmp_path_factory.mktemp("finished")
    run = _short(folder)
    run.train()
    return folder, {name: tensor.clone() for name, tensor in everything(run).items()}


def _short(folder):
    settings = {"max_steps": 2, "decoder_warmup_steps": 1, "save_strategy": "steps", "save_steps": 1}
    return trainer(folder, train=Drawn(6, side=32), evaluate={"near": Drawn(1, side=32)}, **settings)


FILES = (
    "model.safetensors",
    "usual.safetensors",
    "initial.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "deft_state.json",
    "config.json",
)


def emptied(path):
    path.write_bytes(b"")


def halved(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-len(content) // 3] ^= 0x10
    path.write_bytes(content)


def a_folder(path):
    path.unlink()
    path.mkdir()


DAMAGED_FILES = [
    pytest.param(lambda folder, name=name, harm=harm: harm(folder / name), id=f"{name}-{harm.__name__}")
    for index, name in enumerate(FILES)
    for harm in ((halved, flipped), (emptied, flipped), (halved, a_folder))[index % 3]
]


def manifest(content):
    def write(folder):
        (folder / "manifest.json").write_bytes(content)

    return write


def a_path_outside(folder):
    path = folder / "manifest.json"
    listed = json.loads(path.read_text())
    listed["files"]["../checkpoint-1/model.safetensors"] = listed["files"]["model.safetensors"]
    path.write_text(json.dumps(listed))


def of_another_step(folder):
    shutil.copy(folder.with_name("checkpoint-1") / "usual.safetensors", folder)


def a_pickle_more(folder):
    torch.save({}, folder / "optimizer.bin")


def nothing_left(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGED_FOLDERS = [
    pytest.param(manifest(b""), id="manifest-empty"),
    pytest.param(manifest(b'{"files": {"config.json": {"size": 1'), id="manifest-torn"),
    pytest.param(manifest(b"[]"), id="manifest-list"),
    pytest.param(manifest(b'{"files": null}'), id="manifest-null"),
    pytest.param(manifest(b'{"files": {}}'), id="manifest-of-nothing"),
    pytest.param(manifest(b'{"files": {"config.json": 3}}'), id="manifest-numbers"),
    pytest.param(manifest(b"\xff\xfe\x00"), id="manifest-binary"),
    pytest.param(manifest(b"[" * 200_000), id="manifest-deep"),
    pytest.param(lambda folder: (folder / "manifest.json").unlink(), id="manifest-gone"),
    pytest.param(a_path_outside, id="path-outside"),
    pytest.param(of_another_step, id="of-another-step"),
    pytest.param(a_pickle_more, id="a-pickle-more"),
    pytest.param(nothing_left, id="nothing-left"),
    pytest.param(lambda folder: (folder / "loop").symlink_to(folder), id="link-loop"),
]


@pytest.mark.parametrize("damage", [*DAMAGED_FILES, *DAMAGED_FOLDERS])
def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_the_same(finished, tmp_path, caplog, damage):
    source, expected = finished
    shutil.copytree(source, tmp_path / "run")
    damage(tmp_path / "run" / "checkpoint-3")
    run = _short(tmp_path / "run")
    run.train(resume_from_checkpoint=run.last_good_checkpoint())
    (line,) = [record.getMessage() for record in caplog.records if "is damaged and skipped" in record.getMessage()]
    assert "checkpoint-3 is damaged" in line
    found = everything(run)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert integrity.damage(tmp_path / "run" / "checkpoint-3") is None, "written anew"


def test_names_like_a_checkpoints_are_none(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "checkpoint-99").write_text("a file")
    (tmp_path / "run" / "checkpoint-latest").mkdir()
    (tmp_path / "run" / "checkpoint-4-old").mkdir()
    assert integrity.last_good_checkpoint(tmp_path / "run").endswith("checkpoint-3")


# ---- recipes, images, masks and lists, as the command line meets them


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with data and a recipe for it."""
    rng = np.random.default_rng(0)
    for name in ("town", "coast"):
        for kind in ("images", "masks"):
            (tmp_path / name / kind).mkdir(parents=True)
        for index in range(3):
            image, mask = rng.integers(0, 255, (*SIZE, 3)), rng.integers(0, 2, SIZE)
            Image.fromarray(image.astype(np.uint8)).save(tmp_path / name / "images" / f"{index}.png")
            Image.fromarray(mask.astype(np.uint8)).save(tmp_path / name / "masks" / f"{index}.png")
    (tmp_path / "town" / "split.json").write_text(json.dumps({"train": ["0", "1"], "val": ["2"]}))
    recipe = {
        "model": {"checkpoint": "embedded"},
        "method": {"name": "deft", "decoder_warmup_steps": 1},
        "data": {
            "labels": {"names": ["wall", "door"]},
            "source": [{"folder": "town", "split": "train"}],
            "validation": [{"folder": "town", "split": "val"}],
            "unseen": [{"folder": "coast"}],
            "crop_size": list(SIZE),
        },
        "training": {"output_dir": "out", "max_steps": 1, "use_cpu": True, "disable_tqdm": True},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def message(capsys, *overrides):
    """What the command line says; it must end with status 2 and say one error."""
    with pytest.raises(SystemExit) as leaving:
        run_command(lambda: main(["recipe.yaml", *overrides]), "")
    said = capsys.readouterr().err
    assert leaving.value.code == 2
    assert said.count("error: ") == 1 and "Traceback" not in said, said
    return said.partition("error: ")[2]


def recipe_text(change):
    def damage(place):
        path = place / "recipe.yaml"
        path.write_bytes(change(path.read_bytes()))

    return damage


def replaced(old, new):
    return recipe_text(lambda text: text.replace(old, new, 1) if old in text else pytest.fail(f"{old} is not there"))


BOMB = b"".join(
    b"a%d: &a%d [%s]\n" % (level, level, b", ".join([b"*a%d" % (level - 1) if level else b"x"] * 10))
    for level in range(12)
)


@pytest.mark.parametrize(
    "damage, expected",
    [
        (recipe_text(lambda text: b""), "the file is empty"),
        (recipe_text(lambda text: text[: len(text) // 2]), "recipe.yaml"),
        (recipe_text(lambda text: b"\x89PNG\r\n\x1a\n" + bytes(range(256))), "UTF-8"),
        (recipe_text(lambda text: text.decode().encode("utf-16")), "recipe.yaml"),
        (recipe_text(lambda text: text + b"\x00"), "invalid YAML"),
        (recipe_text(lambda text: b"- 1\n- 2\n"), "expected the sections"),
        (recipe_text(lambda text: text + b"\tmodel: {\n"), "invalid YAML"),
        (recipe_text(lambda text: text + text), "is there twice"),
        (recipe_text(lambda text: b"[" * 100_000), "nested too deeply"),
        (recipe_text(lambda text: BOMB + text), "anchors and aliases"),
        (recipe_text(lambda text: text + b"more: &more [*more]\n"), "anchors and aliases"),
        (recipe_text(lambda text: text + b"run: !!python/object/apply:os.system [ls]\n"), "invalid YAML"),
        (replaced(b"max_steps: 1", b"max_steps: many"), "training.max_steps: found"),
        (replaced(b"max_steps: 1", b"max_steps: .nan"), "training.max_steps: found"),
        (replaced(b"crop_size", b"crop_sise"), "did you mean crop_size"),
        (replaced(b"name: deft", b"name: daft"), "did you mean deft"),
        (replaced(b"folder: coast", b"folder: cost"), "found no folder"),
        (replaced(b"split: val", b"split: vall"), "has no split 'vall'"),
        (replaced(b"checkpoint: embedded", b"checkpoint: ./nowhere"), "neither a folder here"),
        (lambda place: ((place / "recipe.yaml").unlink(), (place / "recipe.yaml").mkdir()), "cannot read the recipe"),
    ],
)
def test_a_damaged_recipe_is_one_message(place, capsys, damage, expected):
    damage(place)
    assert expected in message(capsys)
    assert not (place / "out").exists() or not list((place / "out").rglob("*.safetensors"))


def file(name, content):
    def damage(place):
        path = place / name
        path.write_bytes(content(path.read_bytes()) if callable(content) else content)

    return damage


def picture(name, array, **options):
    def damage(place):
        Image.fromarray(array).save(place / name, **options)

    return damage


def instead(name, make):
    def damage(place):
        (place / name).unlink()
        make(place / name)

    return damage


def huge_png(content):
    """The header says 100,000 x 100,000 pixels."""
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">II", 100_000, 100_000) + content[24:29]
    return content[:8] + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


def broken_checksum(content):
    where = content.index(b"IDAT") + 10
    return content[:where] + bytes([content[where] ^ 0xFF]) + content[where + 1 :]


def split(content):
    return file("town/split.json", content if isinstance(content, bytes) else json.dumps(content).encode())


GREY = np.zeros(SIZE, np.uint8)


@pytest.mark.parametrize(
    "damage, expected",
    [
        (file("coast/images/1.png", b""), "coast/images/1.png"),
        (file("coast/images/1.png", lambda content: content[: len(content) // 2]), "coast/images/1.png"),
        (file("coast/images/1.png", b"<html>404 Not Found</html>"), "coast/images/1.png"),
        (file("coast/images/1.png", bytes(4096)), "coast/images/1.png"),
        (file("coast/images/1.png", broken_checksum), "coast/images/1.png"),
        (file("coast/images/1.png", huge_png), "coast/images/1.png"),
        (instead("coast/images/1.png", lambda path: path.symlink_to("gone.png")), "coast/images/1.png"),
        (instead("coast/images/1.png", lambda path: path.symlink_to(path)), "coast/images/1.png"),
        (instead("coast/images/1.png", os.mkfifo), "no regular file"),
        (instead("town/images/1.png", os.mkdir), "1 of the 2 ids of 'train' are no pairs: 1"),
        (picture("coast/images/1.png", np.zeros((5, 7, 3), np.uint8)), "7 x 5"),
        (lambda place: (place / "coast" / "images" / "loop").symlink_to(".."), "links to a folder that it lies in"),
        (lambda place: shutil.copy(place / "coast/images/1.png", place / "coast/images/1.bmp"), "has the same id (1)"),
        (lambda place: [path.unlink() for path in (place / "coast/images").iterdir()], "holds no file"),
        (file("coast/masks/1.png", b""), "coast/masks/1.png"),
        (file("coast/masks/1.png", lambda content: content[: len(content) // 2]), "coast/masks/1.png"),
        (picture("coast/masks/1.png", np.full(SIZE, 77, np.uint8)), "77"),
        (picture("coast/masks/1.png", np.full(SIZE, 40_000, np.uint16)), "40000"),
        (picture("coast/masks/1.png", np.full((*SIZE, 3), 3, np.uint8)), "coast/masks/1.png"),
        (picture("coast/masks/1.png", GREY[:9]), "32 x 9"),
        (picture("coast/masks/1.png", GREY.T.copy()), "EXIF"),
        (lambda place: Image.fromarray(np.zeros(SIZE, np.float32)).save(place / "coast/masks/1.png", "TIFF"), "1.png"),
        (lambda place: shutil.rmtree(place / "coast/masks"), "coast/masks"),
        (lambda place: (place / "town/masks/2.png").unlink(), "1 of the 1 ids of 'val' are no pairs"),
        (split(b""), "split.json: is no valid JSON"),
        (split(b'{"train": ["0", "1"], "val": ["2"'), "split.json: is no valid JSON"),
        (split(b"\xff\xfe{\x00}\x00"), "split.json: is no valid JSON"),
        (split(b"[" * 200_000), "split.json: is no valid JSON"),
        (split(["0", "1", "2"]), "has no split 'train'"),
        (split({"val": ["2"]}), "has no split 'train'"),
        (split({"train": [], "val": ["2"]}), "is empty"),
        (split({"train": ["0", "0"], "val": ["2"]}), "more than once"),
        (split({"train": [0, 1], "val": ["2"]}), "expected a list of ids"),
        (split({"train": "01", "val": ["2"]}), "expected a list of ids"),
        (split({"train": ["0", "../../etc/passwd"], "val": ["2"]}), "are no pairs: ../../etc/passwd"),
        (split({"train": ["0.png", "1.png"], "val": ["2"]}), "are no pairs: 0.png"),
        (lambda place: ((place / "town/split.json").unlink(), (place / "town/split.json").mkdir()), "no such file"),
    ],
)
def test_damaged_data_is_one_message_and_nothing_is_trained(place, capsys, damage, expected):
    damage(place)
    assert expected in message(capsys)
    assert not list((place / "out").rglob("*.safetensors"))


# ---- what else a run reads


def weights(content):
    def damage(place):
        from importlib.resources import files

        shutil.copytree(str(files("deft_hf") / "assets" / "tiny-segformer"), place / "model")
        path = place / "model" / "model.safetensors"
        path.write_bytes(content(path.read_bytes()))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        weights(lambda content: b""),
        weights(lambda content: content[: len(content) // 2]),
        weights(lambda content: bytes(64)),
        weights(lambda content: b"\xff" * 8 + content[8:]),
        weights(lambda content: content[:8] + b"{" * 40 + content[48:]),
    ],
    ids=["empty", "torn", "zeros", "long-header", "no-json"],
)
def test_damaged_pretrained_weights_are_one_message(place, capsys, damage):
    damage(place)
    assert "model.checkpoint: model cannot be read" in message(capsys, "model.checkpoint=model")


def saved_run(place):
    """The folder of a run that was broken off."""
    (place / "out" / "checkpoint-1").mkdir(parents=True)
    (place / "out" / "checkpoint-1" / "config.json").write_text("{}")
    return place / "out" / "recipe.yaml"


@pytest.mark.parametrize("content", [b"", b"model: {checkpoint", b"- 1\n", b"\xff\xfe\x00", b"data: {labels: 3}\n"])
def test_a_run_whose_recipe_is_damaged_is_not_touched(place, capsys, content):
    path = saved_run(place)
    path.write_bytes(content)
    assert "nothing was touched" in message(capsys)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", ["", '{"method": "deft", "scores', "[]", '{"method": "joint", "scores": {}}'])
def test_damaged_results_are_not_reported(place, capsys, content):
    (place / "out" / "results").mkdir(parents=True)
    (place / "out" / "results" / "metrics.json").write_text(content)
    from deft_hf.recipe import Recipe

    (place / "out" / "recipe.yaml").write_text(Recipe.load("recipe.yaml").to_yaml())
    assert "metrics.json: cannot be used" in message(capsys)


def test_on_windows_files_are_flushed_through_handles_that_may_write(tmp_path, monkeypatch):
    flushed = []

    def fsync(handle):  # as there: EBADF for a handle that only reads
        os.write(handle, b"")
        flushed.append(os.fstat(handle).st_ino)

    monkeypatch.setattr(integrity, "_WINDOWS", True)
    monkeypatch.setattr(os, "fsync", fsync)
    partial = tmp_path / ".checkpoint-1.partial"
    partial.mkdir()
    (partial / "weights").write_bytes(b"1")
    integrity.put_in_place(partial, tmp_path / "checkpoint-1")
    assert integrity.damage(tmp_path / "checkpoint-1") is None
    assert (tmp_path / "checkpoint-1" / "weights").stat().st_ino in flushed
