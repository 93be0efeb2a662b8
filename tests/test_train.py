import json
import re
import shutil
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    BertConfig,
    SegformerModel,
)

from deft_hf.evaluate import main as evaluate_main
from deft_hf.recipe import Recipe
from deft_hf.runs import finish, folder, train
from deft_hf.train import main
from deft_hf.utils.errors import UserError, run_command
from deft_hf.utils.files import is_published
from tests import processes, tiny

pytestmark = pytest.mark.usefixtures("unverified")
SIZE = (48, 64)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A backbone without a head, as most pretrained checkpoints are."""
    folder = tmp_path_factory.mktemp("backbone")
    model = tiny.build("segformer", **tiny.WITHOUT_DROPOUT["segformer"]).segformer
    assert isinstance(model, SegformerModel)
    model.save_pretrained(folder)
    return folder


def pairs(folder, count, seed=0, mode="png"):
    """Images whose left half is one class and whose right half is another."""
    rng = np.random.default_rng(seed)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for index in range(count):
        mask = np.zeros(SIZE, np.uint8)
        mask[:, SIZE[1] // 2 :] = 1
        image = rng.integers(0, 80, (*SIZE, 3)).astype(np.uint8) + mask[..., None] * 120
        Image.fromarray(image).save(folder / "images" / f"{index:03d}.{mode}")
        Image.fromarray(mask).save(folder / "masks" / f"{index:03d}.png")
    return folder


def recipe_in(place, checkpoint):
    """A recipe over drawn folders; returns a function that writes it with changes and gives its path."""
    for name, seed in (("town", 0), ("coast", 1)):
        pairs(place / "data" / name, 6, seed)
    split = {"train": [f"{i:03d}" for i in range(4)], "val": ["004", "005"]}
    (place / "data" / "town" / "split.json").write_text(json.dumps(split))

    def write(**changes):
        sections = {
            "model": {"checkpoint": str(checkpoint)},
            "method": {"name": "deft", "baselines": ["joint"], "decoder_warmup_steps": 2, "batchnorm_batches": 1},
            "data": {
                "root": str(place / "data"),
                "labels": {"names": ["wall", "door"]},
                "source": [{"folder": "town", "split": "train"}],
                "validation": [{"folder": "town", "split": "val"}],
                "unseen": [{"folder": "coast"}],
                "image_size": list(SIZE),
                "crop_size": [32, 32],
                "max_class_share": 1.0,
            },
            "training": {
                "output_dir": str(place / "out"),
                "max_steps": 4,
                "per_device_train_batch_size": 2,
                "learning_rate": 1e-3,
                "save_steps": 3,
                "logging_steps": 2,
                "disable_tqdm": True,
                "use_cpu": True,
            },
        }
        for name, values in changes.items():
            sections[name] = sections.get(name, {}) | values
        path = place / "recipe.yaml"
        path.write_text(yaml.safe_dump(sections))
        return str(path)

    return write


@pytest.fixture
def recipe(tmp_path, checkpoint):
    return recipe_in(tmp_path, checkpoint)


@pytest.fixture(scope="module")
def trained(checkpoint, tmp_path_factory):
    """The folder of a finished run of DeFT alone, of whose recipe the function writes changes."""
    place = tmp_path_factory.mktemp("trained")
    recipe = recipe_in(place, checkpoint)
    with pytest.MonkeyPatch.context() as patch:
        processes.shorten(patch)
        main([recipe(method={"baselines": []})])
    return place / "out", recipe


@pytest.fixture
def finished(trained, tmp_path):
    """A recipe whose run, a copy of `trained`, is finished."""
    out, recipe = trained
    shutil.copytree(out, tmp_path / "out")
    return recipe(method={"baselines": []}, training={"output_dir": str(tmp_path / "out")})


def weights(folder):
    return AutoModelForSemanticSegmentation.from_pretrained(folder).state_dict()


def tensorboard_has_what_the_log_has(out):
    written = {}
    for events in sorted((out / "runs").rglob("events.out.tfevents*")):  # that after training has a file of its own
        found = EventAccumulator(str(events)).Reload()
        written |= {tag: found.Scalars(tag)[-1] for tag in found.Tags()["scalars"]}
    last = {}
    for entry in json.loads((out / "results" / "history.json").read_text()):
        kind = "loss" in entry or any(key.startswith("eval_") for key in entry)
        last |= {key: (entry["step"], value) for key, value in entry.items() if kind and key not in ("step", "epoch")}
    wanted = {"encoder_loss", "decoder_loss", "encoder_learning_rate", "encoder_initial_share", "decoder_distance"}
    assert wanted | {"usual_encoder_distance", "eval_town_mean_iou", "eval_coast_mean_iou"} <= set(last)
    for key, (step, value) in last.items():
        tag = f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"
        assert (written[tag].step, written[tag].value) == (step, pytest.approx(value, rel=1e-5)), tag


@pytest.mark.verified
def test_a_run_from_recipe_to_model(recipe, tmp_path, capsys):
    main([recipe(), "training.seed=3", "training.report_to=tensorboard", "training.eval_strategy=steps"])
    out = tmp_path / "out"
    assert "| deft |" in capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {
        ".deft_hf.jsonl", ".lock", "README.md", "baselines", "checkpoint-3", "checkpoint-6", "config.json",
        "data.json", "figures",
        "model.safetensors", "preprocessor_config.json", "recipe.yaml", "report.html", "results", "runs",
    }  # fmt: skip
    assert yaml.safe_load((out / "recipe.yaml").read_text())["training"]["seed"] == 3
    facts = json.loads((out / "results" / "metrics.json").read_text())
    assert facts["stages"] == [{"stage": "warmup", "steps": 2}, {"stage": "decoupled", "steps": 4}]
    assert facts["initial_share"]["encoder"] == pytest.approx(0.9999**80_000)
    assert set(facts["scores"]) == {"town", "coast"}
    pictures = ("domains", "panels", "curves", "classes", "confusion", "layers")
    assert {path.stem for path in (out / "figures").iterdir()} == set(pictures)
    for picture in pictures:
        assert min(Image.open(out / "figures" / f"{picture}.png").size) > 200
    confusions = json.loads((out / "results" / "confusions.json").read_text())
    for domain, counts in confusions.items():
        assert np.sum(counts) == facts["scores"][domain]["pixels"]
        assert np.trace(counts) / np.sum(counts) == pytest.approx(facts["scores"][domain]["pixel_accuracy"])
    moved = json.loads((out / "results" / "layer_distances.json").read_text())
    for part in ("segformer.", "decode_head."):  # single layers of so small a model may have no gradient
        assert any(value > 0 for name, value in moved.items() if name.startswith(part))
    tensorboard_has_what_the_log_has(out)
    card, page = (out / "README.md").read_text(), (out / "report.html").read_text()
    assert all(f"](figures/{picture}.png)" in card for picture in pictures)
    assert page.count("data:image/png;base64,") == len(pictures) and str(tmp_path) not in page
    assert str(tmp_path) not in card and "pipeline_tag: image-segmentation" in card
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {name for name in files if is_published(name) is None} == set()
    sent = {name for name in files if is_published(name)}
    assert {name.partition("/")[0] for name in sent} == {
        "README.md", "config.json", "figures", "model.safetensors", "preprocessor_config.json", "recipe.yaml",
        "report.html", "results",
    }  # fmt: skip
    checkpoint = {path.name for path in (out / "checkpoint-6").iterdir()}
    assert {name for name in checkpoint if is_published(name)} == {
        "config.json", "model.safetensors", "preprocessor_config.json",
    }  # fmt: skip
    assert {name for name in checkpoint if is_published(name) is None} == set()
    assert not any(torch_file in {p.suffix for p in out.glob("*")} for torch_file in (".bin", ".pt", ".pth"))

    model, processor = AutoModelForSemanticSegmentation.from_pretrained(out), AutoImageProcessor.from_pretrained(out)
    assert model.config.id2label == {0: "wall", 1: "door"}
    image = Image.open(tmp_path / "data" / "coast" / "images" / "000.png")
    logits = model(**processor(images=image, return_tensors="pt")).logits
    assert logits.shape[1] == 2 and torch.isfinite(logits).all()


def test_a_finished_run_is_left_alone_and_another_recipe_is_refused(recipe, tmp_path, capsys):
    main([recipe()])
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("model.safetensors")}
    main([recipe()])
    assert "deft: done before" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"holds another run, whose recipe differs in training.max_steps \(4 there, 5"):
        main([recipe(), "training.max_steps=5"])
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("model.safetensors")} == before


DAMAGED = {
    "results/history.json": (
        "",
        "5",
        '["a"]',
        '[{"step": "x", "loss": 1}]',
        '[{"step": 1, "loss": {}}]',
        '[{"coast_iou": 1}]',
    ),
    "results/confusions.json": ("{", "[1]", '{"coast": [[1]]}', '{"coast": "x"}'),
    "results/layer_distances.json": ("\0", "3", '{"layer": "far"}'),
    "config.json": ("", "[]", "5", '{"model_type": "segformer", "depths": 3}', '{"model_type": "none"}'),
    "model.safetensors": ("", "torn"),
    "preprocessor_config.json": ("[", "5"),
}


def test_damaged_files_of_a_finished_run_are_one_message(finished, tmp_path):
    path, out = finished, tmp_path / "out"
    for name, contents in DAMAGED.items():
        whole = (out / name).read_bytes()
        for content in contents:
            (out / name).write_text(content)
            with pytest.raises(UserError, match=f"out.*emove .*{'metrics|' if '/' not in name else ''}it"):
                main([path])
        (out / name).write_bytes(whole)
    for name in ("results/history.json", "results/confusions.json", "results/layer_distances.json"):
        (out / name).unlink()
    main([path])


def test_metrics_that_a_finished_run_lacks_are_named_and_how_to_get_them(finished, tmp_path, capsys):
    out = tmp_path / "out"
    main([finished])
    assert "training.metrics" not in capsys.readouterr().out
    main([finished, "training.metrics=[f_score,pixel_accuracy]"])
    command = f"deft-hf evaluate {out} {out / 'recipe.yaml'} --out scores_deft"
    assert f"deft: was done without training.metrics f_score; to have them: {command}\n" in capsys.readouterr().out
    evaluate_main([str(out), str(out / "recipe.yaml"), "--out", str(tmp_path / "scores"), "--no-pictures", "--quiet"])
    scores = json.loads((tmp_path / "scores/results/metrics.json").read_text())["scores"]
    assert scores and all("mean_f_score" in of_a_domain for of_a_domain in scores.values())


def test_settings_that_leave_the_model_alone_may_change_and_are_named(finished, recipe, tmp_path, capsys):
    main([finished, "training.save_steps=1", "data.check=false", "training.bf16=false"])
    said = capsys.readouterr().out
    assert (
        "resuming under a recipe that differs in data.check (True there, False here), training.save_steps (3" in said
    )
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["training"]["save_steps"] == 1
    choosing = {"load_best_model_at_end": True, "metric_for_best_model": "town_mean_iou", "eval_strategy": "steps"}
    chosen = recipe(
        method={"baselines": []},
        training={"output_dir": str(tmp_path / "chosen"), "save_steps": 2, "eval_steps": 2, **choosing},
    )
    main([chosen])
    assert json.loads((tmp_path / "chosen" / "results" / "metrics.json").read_text())["best_checkpoint"] in (2, 4, 6)
    with pytest.raises(UserError, match=r"differs in .*training.save_steps \(2.0 there, 3.0 here\)"):
        main([chosen, "training.save_steps=3", "training.eval_steps=3"])


def test_a_broken_run_goes_on_with_another_number_of_processes_where_the_global_batch_is_the_same(
    recipe, tmp_path, monkeypatch
):
    path, calls, export = recipe(), [], finish.export_generalized

    def killed(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:  # joint is done, DeFT is trained
            raise KeyboardInterrupt
        return export(*args, **kwargs)

    monkeypatch.setattr(finish, "export_generalized", killed)
    with pytest.raises(KeyboardInterrupt):
        main([path])
    saved = (tmp_path / "out" / "recipe.yaml").read_text()

    def claim(processes, *overrides, anyway=False):
        monkeypatch.setattr(folder, "PartialState", lambda: Processes(processes))
        with folder.claimed_folder(Recipe.load(path, overrides), anyway):
            pass

    with pytest.raises(UserError, match=r"differs in the global batch \(2 there, 4 here: per_device_.* x processes"):
        claim(2)
    with pytest.raises(UserError, match=r"the global batch \(2 there, 1 here"):
        claim(1, "training.per_device_train_batch_size=1")
    with pytest.raises(UserError, match="holds results of the other recipe"):
        claim(2, anyway=True)
    assert (tmp_path / "out" / "recipe.yaml").read_text() == saved
    claim(2, "training.per_device_train_batch_size=1")
    claim(1, "training.per_device_train_batch_size=1", "training.gradient_accumulation_steps=2")
    (tmp_path / "out" / "results").mkdir()
    shutil.copy(tmp_path / "out" / "baselines" / "joint" / "results" / "metrics.json", tmp_path / "out" / "results")
    claim(2, "training.per_device_train_batch_size=1", "training.gradient_accumulation_steps=2")  # all is done


class Processes:
    """What `claimed_folder` asks Accelerate for, of the first of several processes."""

    is_main_process = True

    def __init__(self, count):
        self.num_processes = count

    def wait_for_everyone(self):
        pass


def test_a_recipe_that_was_saved_before_a_key_was_there_is_the_same_recipe(finished, tmp_path, capsys):
    path = tmp_path / "out" / "recipe.yaml"
    old = yaml.safe_load(path.read_text())
    del old["data"]["unreadable"], old["method"]["projection_weight"]
    path.write_text(yaml.safe_dump(old))
    main([finished])
    assert "deft: done before" in capsys.readouterr().out


def test_a_run_whose_folder_was_moved_is_the_same_run(finished, tmp_path, capsys):
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    main([finished, f"training.output_dir={tmp_path / 'elsewhere'}"])
    said = capsys.readouterr().out
    assert "deft: done before" in said and "differs" not in said


def test_another_recipe_is_gone_on_with_when_told(recipe, tmp_path, capsys, monkeypatch):
    path = recipe(method={"baselines": []})

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finish, "export_generalized", killed)
        main([path])
    changes = ["training.max_steps=6", "training.learning_rate=1e-4"]
    with pytest.raises(UserError, match=r"learning_rate .*; nothing was touched.*resume_anyway"):
        main([path, *changes])
    main([path, *changes, "--resume-anyway"])
    said = capsys.readouterr().out
    assert re.search(r"resuming under a recipe that differs in .*learning_rate \(0.001 there, 0.0001 here\)", said)
    facts = json.loads((tmp_path / "out" / "results" / "metrics.json").read_text())
    assert facts["stages"][-1]["steps"] == 6 and facts["resumed"] and facts["recipes_before"] == ["recipe.1.yaml"]
    assert yaml.safe_load((tmp_path / "out" / "recipe.1.yaml").read_text())["training"]["max_steps"] == 4
    with pytest.raises(UserError, match="holds results of the other recipe .*metrics.json.*nothing was touched"):
        main([path, "--resume-anyway"])


def test_a_run_that_was_killed_while_it_claimed_its_folder_starts(recipe, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".recipe.yaml.part").write_text("model: {che")
    (tmp_path / "out" / ".writable-x1").touch()
    main([recipe(method={"baselines": []}), "training.max_steps=1"])
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_folder_where_a_run_still_goes_on_is_not_touched(recipe, tmp_path, monkeypatch):
    path = recipe(method={"baselines": []})
    monkeypatch.setattr(folder, "_PATIENCE", 0.1)
    with folder.claimed_folder(Recipe.load(path)) as out:
        (out / ".checkpoint-1.partial").mkdir()
        with pytest.raises(UserError, match="belongs to a run that is still running; nothing was touched"):
            main([path])
        assert (out / ".checkpoint-1.partial").is_dir()
    main([path, "training.max_steps=4"])
    assert not (out / ".checkpoint-1.partial").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder at hand that nobody can write to")
def test_an_output_folder_that_cannot_be_made_is_known_at_once(recipe):
    with pytest.raises(UserError, match="/proc/out: cannot be written to .*nothing was trained"):
        main([recipe(training={"output_dir": "/proc/out"})])


@pytest.fixture
def breaks_after_the_check(monkeypatch):
    """Lets an image turn unreadable once the data was checked."""

    def use(*paths):
        load = train.load_domains

        def load_then_break(data):
            domains = load(data)
            for path in paths:
                path.write_bytes(path.read_bytes()[:60])
            return domains

        monkeypatch.setattr(train, "load_domains", load_then_break)

    return use


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_turns_unreadable_stops_the_run(recipe, tmp_path, breaks_after_the_check, capsys, workers):
    breaks_after_the_check(tmp_path / "data" / "town" / "images" / "002.png")
    path = recipe(method={"baselines": []})
    with pytest.raises(SystemExit):
        run_command(lambda: main([path, f"training.dataloader_num_workers={workers}"]), "")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert re.fullmatch(r"error: \S*town/images/002.png: cannot be read \(.*\); replace the file or leave .*", line)


def test_an_image_that_turns_unreadable_is_skipped_and_counted_where_the_recipe_says_so(
    recipe, tmp_path, breaks_after_the_check
):
    images = tmp_path / "data"
    breaks_after_the_check(images / "town" / "images" / "002.png", images / "coast" / "images" / "000.png")
    path = recipe(method={"baselines": []}, data={"unreadable": "skip"})
    main([path, "training.dataloader_num_workers=1"])
    facts = json.loads((tmp_path / "out" / "results" / "metrics.json").read_text())
    assert facts["unreadable"] == {"town": ["002"], "coast": ["000"]}
    assert facts["scores"]["coast"]["pixels"] == 5 * SIZE[0] * SIZE[1], "of the five that are left, none twice"
    history = json.loads((tmp_path / "out" / "results" / "history.json").read_text())
    assert [entry["unreadable_images"] for entry in history if "unreadable_images" in entry][-1] == 1
    assert "could not be read while it ran: 1 of town, 1 of coast" in (tmp_path / "out" / "README.md").read_text()
    # Once more, in one process, with the check, which finds what is broken and goes on.
    again = [f"training.output_dir={tmp_path / 'again'}", "training.dataloader_num_workers=0"]
    main([path, *again])
    expected, found = weights(tmp_path / "out"), weights(tmp_path / "again")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_run_says_what_it_came_from(trained):
    out, _ = trained
    facts = json.loads((out / "results" / "metrics.json").read_text())
    assert facts["recipe"] == yaml.safe_load((out / "recipe.yaml").read_text())
    assert set(facts["git"]) == {"deft_hf", "recipe"} and facts["versions"]["torch"] == torch.__version__
    (source,), (coast,) = facts["data"]["source"], facts["data"]["unseen"]
    assert (source["name"], source["images"]) == ("town", 4) and coast["name"] == "coast"
    assert len(source["contents"]) == 64 and source["contents"] != facts["data"]["validation"][0]["contents"]


def test_sigterm_to_the_command_saves_and_the_same_command_goes_on(recipe, tmp_path):
    main([recipe(method={"baselines": []}, training={"output_dir": str(tmp_path / "unbroken"), "max_steps": 20})])
    out = tmp_path / "out"
    path = recipe(method={"baselines": []}, training={"max_steps": 20, "save_steps": 1, "save_total_limit": 2})
    process = processes.Started("deft_hf.train", path, shortened=True)
    while process.poll() is None and not list(out.glob("checkpoint-*")):
        time.sleep(0.02)
    process.terminate()
    killed = process.wait()
    said = killed.stderr
    assert killed.returncode == 143 and "SIGTERM: saved step" in said and "Traceback" not in said, said
    steps = max(int(folder.name.rpartition("-")[2]) for folder in out.glob("checkpoint-*"))
    assert steps < 22, "it was killed too late to show anything"
    processes.run("deft_hf.train", path, shortened=True).check_returncode()
    expected, found = weights(tmp_path / "unbroken"), weights(out)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_folder_of_something_else_is_not_touched(recipe, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="exists and is no run of deft_hf; nothing was touched"):
        main([recipe()])
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_broken_run_goes_on_and_ends_as_an_unbroken_one(recipe, trained, tmp_path, monkeypatch):
    def killed(*args, **kwargs):  # DeFT has trained, to checkpoint-6
        raise KeyboardInterrupt

    path, (unbroken, _) = recipe(method={"baselines": []}), trained
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finish, "export_generalized", killed)
        main([path])
    shutil.rmtree(tmp_path / "out" / "checkpoint-6")
    main([path])
    expected, found = weights(unbroken), weights(tmp_path / "out")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    scores = [json.loads((run / "results" / "metrics.json").read_text()) for run in (unbroken, tmp_path / "out")]
    assert scores[0]["scores"] == scores[1]["scores"]
    assert not scores[0]["resumed"] and scores[1]["resumed"]


def bad_id(folder):
    Image.fromarray(np.full(SIZE, 9, np.uint8)).save(folder / "town" / "masks" / "001.png")


def bad_size(folder):
    Image.new("L", (5, 5)).save(folder / "town" / "masks" / "002.png")


def corrupt(folder):
    (folder / "coast" / "images" / "003.png").write_bytes(b"\xff\xd8\xff\xe0 not a picture")


def emptied(folder):
    for path in (folder / "coast" / "images").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    "damage, message",
    [
        (bad_id, r"001.png.*9"),
        (bad_size, r"002.*5.*5"),
        (corrupt, r"003.png"),
        (emptied, r"coast"),
        (lambda folder: shutil.rmtree(folder / "coast" / "masks"), r"coast.*masks"),
        (lambda folder: shutil.rmtree(folder), r"data.root: found no folder"),
    ],
)
def test_bad_data_is_one_message_and_nothing_is_trained(recipe, tmp_path, damage, message):
    path = recipe(training={"output_dir": str(tmp_path / "out")})
    damage(tmp_path / "data")
    with pytest.raises(UserError) as error:
        main([path])
    assert re.search(message, str(error.value), flags=re.DOTALL), str(error.value)
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_a_run_that_came_to_nothing_makes_way_for_the_mended_recipe(recipe, tmp_path):
    bad_id(tmp_path / "data")
    with pytest.raises(UserError, match="001.png"):
        main([recipe(method={"baselines": []})])
    labels = "data.labels={names: [wall, door], ids: {0: 0, 1: 1, 9: 255}}"
    main([recipe(method={"baselines": []}), labels, "training.max_steps=1"])
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_models_that_cannot_be_used(recipe, tmp_path, checkpoint):
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="bert: a bert model is no semantic segmentation model.*Known types: beit"):
        main([recipe(), f"model.checkpoint={tmp_path / 'bert'}"])
    shutil.copytree(checkpoint, tmp_path / "empty")
    (tmp_path / "empty" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="empty cannot be read"):
        main([recipe(training={"output_dir": str(tmp_path / "b")}), f"model.checkpoint={tmp_path / 'empty'}"])
    with pytest.raises(UserError, match="nobody/nothing cannot be read"):
        main([recipe(training={"output_dir": str(tmp_path / "c")}), "model.checkpoint=nobody/nothing"])
    wider = tiny.segformer()
    shutil.copytree(checkpoint, tmp_path / "torn")
    config = json.loads((tmp_path / "torn" / "config.json").read_text())
    config["hidden_sizes"] = [8, 8, 24, 16]
    (tmp_path / "torn" / "config.json").write_text(json.dumps(config))
    assert wider.config.hidden_sizes != config["hidden_sizes"]
    with pytest.raises(UserError, match=r"lacks \d+ tensors of the encoder"):
        main([recipe(training={"output_dir": str(tmp_path / "d")}), f"model.checkpoint={tmp_path / 'torn'}"])


def test_mixed_sources_windows_recoloured_copies_and_a_push_that_fails(recipe, tmp_path):
    folder = tmp_path / "data" / "town"
    pictures = {kind: sorted(map(str, (folder / kind).iterdir())) for kind in ("images", "masks")}
    hub = datasets.Dataset.from_dict({"photo": pictures["images"], "truth": pictures["masks"]})
    hub = hub.cast_column("photo", datasets.Image()).cast_column("truth", datasets.Image())
    datasets.DatasetDict({"train": hub}).save_to_disk(tmp_path / "hub")
    entry = f"{{hub: {tmp_path / 'hub'}, split: train, image_column: photo, mask_column: truth, name: hub, weight: 1}}"
    path = recipe(method={"baselines": []}, publish={"push_to_hub": True, "repo_id": "someone/model"})
    with pytest.raises(UserError, match="the push to someone/model failed.*safe in .*out.*python -m deft_hf.push"):
        main(
            [
                path,
                f"data.source=[{{folder: coast, weight: 3}}, {entry}]",
                "data.unseen=[]",
                "data.recolor=true",
                "data.window=[32, 32]",
                "data.stride=[16, 16]",
            ]
        )
    assert (tmp_path / "out" / "model.safetensors").is_file() and (tmp_path / "out" / "README.md").is_file()


def test_the_models_config_can_be_changed(recipe, tmp_path):
    main([recipe(method={"baselines": []}), "model.config={decoder_hidden_size: 24}"])
    assert AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out").config.decoder_hidden_size == 24
    with pytest.raises(
        UserError, match="model.config.decoder_size: a segformer config has no such field; it has .*decoder_h"
    ):
        main([recipe(training={"output_dir": str(tmp_path / "b")}), "model.config={decoder_size: 24}"])


def test_a_head_for_other_classes_is_replaced(recipe, tmp_path):
    tiny.build("segformer").save_pretrained(tmp_path / "seven")  # seven classes; the recipe has two
    main([recipe(method={"baselines": []}), f"model.checkpoint={tmp_path / 'seven'}"])
    assert AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out").config.num_labels == 2


@pytest.mark.verified
def test_a_mask_classification_checkpoint_goes_all_the_way(recipe, tmp_path, capsys):
    """With an input of its own beside the image, and a text branch that is left out."""
    model = tiny.build("oneformer", is_training=True, text_encoder_width=64, text_encoder_num_layers=1)
    model.save_pretrained(tmp_path / "seven")
    changes = {"method": {"baselines": []}, "data": {"crop_size": [48, 64]}}
    path = recipe(**changes)
    with pytest.raises(
        UserError, match="is_training of this oneformer model is True.*load it with `is_training=False`"
    ):
        main([path, f"model.checkpoint={tmp_path / 'seven'}", "model.config={is_training: true}"])
    main([path, f"model.checkpoint={tmp_path / 'seven'}"])
    assert "OneFormerForUniversalSegmentation" in (said := capsys.readouterr().out)
    # The classifier, and the weights of the loss's classes.
    newly = re.search("Newly made: (.*)", said)[1]
    assert "class_embed" in newly and "empty_weight" in newly and "encoder" not in newly
    exported = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "out")
    assert exported.config.num_labels == 2 and exported.model.text_mapper is None
    assert exported.criterion.empty_weight.tolist() == pytest.approx([1, 1, 0.1])
    assert "AutoModelForUniversalSegmentation" in (tmp_path / "out" / "README.md").read_text()
    backbone = tmp_path / "backbone"
    model.model.pixel_level_module.encoder.save_pretrained(backbone)
    with pytest.raises(UserError, match="a swin model is no semantic segmentation model of transformers"):
        main([recipe(training={"output_dir": str(tmp_path / "b")}), f"model.checkpoint={backbone}"])


def test_a_model_of_one_image_size_says_so(recipe, tmp_path):
    tiny.build("eomt").save_pretrained(tmp_path / "square")
    path, checkpoint = recipe(), f"model.checkpoint={tmp_path / 'square'}"
    with pytest.raises(UserError, match=r"data.crop_size: found \(32, 32\), but .*square takes images of 64 x 64"):
        main([path, checkpoint])
    with pytest.raises(UserError, match=r"data.image_size: found \(80, 96\)"):
        main([path, checkpoint, "data.crop_size=[64, 64]", "data.image_size=[80, 96]"])


@pytest.mark.verified
@pytest.mark.parametrize("image_size", [None, [80, 96]], ids=["smaller than the window", "larger"])
def test_a_model_of_one_image_size_goes_all_the_way_with_a_window(recipe, tmp_path, image_size):
    tiny.build("eomt").save_pretrained(tmp_path / "square")
    sizes = {"image_size": image_size, "crop_size": [64, 64], "window": [64, 64]}
    main([recipe(method={"baselines": []}, data=sizes), f"model.checkpoint={tmp_path / 'square'}"])
    scores = json.loads((tmp_path / "out" / "results" / "metrics.json").read_text())["scores"]
    assert scores["coast"]["pixels"] == 6 * SIZE[0] * SIZE[1]
    # Whoever opens it knows of no window.
    model = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "out").eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    inputs = processor(images=Image.new("RGB", (110, 70)), return_tensors="pt")
    assert model(**inputs).masks_queries_logits.isfinite().all()


def test_the_command_line_says_one_line_and_exits_with_2(recipe):
    result = processes.run("deft_hf.train", recipe(), "training.max_step=3")
    assert result.returncode == 2
    assert "max_step" in result.stderr and "max_steps" in result.stderr and "Traceback" not in result.stderr
