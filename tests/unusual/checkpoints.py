"""Exports and checkpoints: torn files, pickles, code, other models' files, manifests and states that were edited."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import SegformerImageProcessorPil

from deft_hf.data.labels import LabelSpace
from deft_hf.models.opening import open_model
from deft_hf.models.pretrained import open_pretrained
from deft_hf.publish.export import export_generalized
from deft_hf.runs.facts import read_facts
from deft_hf.runs.segmenter import Segmenter
from deft_hf.trainer.components import load_component
from deft_hf.utils.integrity import last_good_checkpoint, write_manifest
from tests import tiny
from tests.trainer.test_trainer import Drawn, trainer

LABELS = LabelSpace([f"class {index}" for index in range(tiny.NUM_LABELS)])
WEIGHTS, CONFIG, PROCESSOR, STATE = "model.safetensors", "config.json", "preprocessor_config.json", "deft_state.json"
CODE = "open('ran', 'w')\n"
AS_IT_WAS, NONE = "as it was", "none"

Harm = Callable[[Path], object]


class Payload:
    """What runs a command when it is unpickled."""

    def __reduce__(self):
        return open, ("ran", "w")


@cache
def _kept() -> TemporaryDirectory:
    return TemporaryDirectory()


def _training(folder: Path, **settings: Any) -> Any:
    data = {"train": Drawn(4, side=32), "evaluate": {"near": Drawn(1, side=32)}}
    steps = {"max_steps": 1, "decoder_warmup_steps": 1, "save_strategy": "steps", "save_steps": 1}
    return trainer(folder, **data, **steps, **settings)


@cache
def original(kind: str) -> Path:
    """A model as it is exported, or the two checkpoints of a tiny run; made once."""
    folder = Path(_kept().name) / kind
    if kind == "run":
        _training(folder).train()
        shutil.rmtree(folder / "runs", ignore_errors=True)
    else:
        model = tiny.build("segformer")
        model.config.id2label = LABELS.id2label
        export_generalized(model, folder, SegformerImageProcessorPil())
    return folder


def predict(harm: Harm, place: Path) -> str:
    """Opens a harmed export as `predict` does."""
    folder = shutil.copytree(original("export"), place / "model")
    harm(folder)
    model = Segmenter.open(str(folder), device="cpu").model
    return _compared(model, _weights("export"))


def train(harm: Harm, place: Path) -> str:
    """Opens a harmed export as a run does that starts from it."""
    folder = shutil.copytree(original("export"), place / "model")
    harm(folder)
    opened = open_pretrained(str(folder), LABELS)
    assert not opened.new
    return _compared(opened.model, _weights("export"))


def backbone(harm: Harm, place: Path) -> None:
    """Opens a harmed export as a run does that puts a head on it."""
    folder = shutil.copytree(original("export"), place / "model")
    harm(folder)
    open_pretrained(str(folder), LABELS, head="upernet")


def resume(harm: Harm, place: Path) -> str:
    """Resumes from a harmed checkpoint whose manifest is right."""
    shutil.copytree(original("run"), place / "out")
    shutil.rmtree(place / "out" / "checkpoint-2")
    folder = place / "out" / "checkpoint-1"
    harm(folder)
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    run = _training(place / "out")
    run.train(resume_from_checkpoint=str(folder))
    return _compared(run.generalized_model, _weights("run", "checkpoint-2"))


def component(harm: Harm, place: Path) -> str:
    """The trained weights of a harmed checkpoint whose manifest is right."""
    shutil.copytree(original("run"), place / "out")
    folder = place / "out" / "checkpoint-2"
    harm(folder)
    (folder / "manifest.json").unlink(missing_ok=True)
    write_manifest(folder)
    expected = load_file(original("run") / "checkpoint-2" / "usual.safetensors")
    found = load_component(folder, "usual").state_dict()
    return AS_IT_WAS if all(torch.equal(found[name], value) for name, value in expected.items()) else "changed"


def last(harm: Harm, place: Path) -> str:
    """The checkpoint that a run resumes from."""
    shutil.copytree(original("run"), place / "out")
    harm(place / "out" / "checkpoint-2")
    return Path(last_good_checkpoint(place / "out") or NONE).name


def results(harm: Harm, place: Path) -> Any:
    """What is read of `results/metrics.json`."""
    (place / "results").mkdir()
    harm(place / "results")
    return read_facts({"deft": place})


@cache
def _weights(kind: str, below: str = "") -> dict[str, torch.Tensor]:
    return open_model(original(kind) / below).state_dict()


def _compared(model: torch.nn.Module, expected: dict[str, torch.Tensor]) -> str:
    found = model.state_dict()
    return AS_IT_WAS if all(torch.equal(found[name], value) for name, value in expected.items()) else "changed"


def outcome(given: tuple[Callable[[Harm, Path], Any], Harm], place: Path) -> Any:
    """What comes of a harmed folder."""
    do, harm = given
    return do(harm, place)


# ---- what is done to a folder


def content(name: str, data: bytes | str) -> Harm:
    return lambda folder: (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)


def torn(name: str) -> Harm:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def gone(name: str) -> Harm:
    return lambda folder: (folder / name).unlink()


def edited(name: str, **values: Any) -> Harm:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def without(name: str, key: str) -> Harm:
    def change(folder: Path) -> None:
        facts = json.loads((folder / name).read_text())
        del facts[key]
        (folder / name).write_text(json.dumps(facts))

    return change


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Harm:
    return lambda folder: save_file(change(load_file(folder / name)), folder / name, {"format": "pt"})


def pickled(name: str) -> Harm:
    return lambda folder: (folder / name).write_bytes(pickle.dumps(Payload()))


def pickled_by_torch(name: str, instead_of: str) -> Harm:
    def change(folder: Path) -> None:
        kept = load_file(folder / instead_of) if instead_of.endswith(".safetensors") else {}
        (folder / instead_of).unlink()
        torch.save({**kept, "planted": Payload()}, folder / name)

    return change


def both(*harms: Harm) -> Harm:
    return lambda folder: [harm(folder) for harm in harms]


def shards(place: str) -> Harm:
    """Weights in a shard at this path, relative to the folder."""

    def change(folder: Path) -> None:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        names = [*load_file(folder / WEIGHTS)]
        (folder / WEIGHTS).rename(folder / place)
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, place)}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))

    return change


def coded(**values: Any) -> Harm:
    code = {"AutoConfig": "house.Config", "AutoModelForSemanticSegmentation": "house.Model"}
    return both(content("house.py", CODE), edited(CONFIG, auto_map=code, **values))


def longer(folder: Path) -> None:
    (folder / "more.bin").write_bytes(b"")


def of_another_step(folder: Path) -> None:
    shutil.copy(folder.with_name("checkpoint-1") / "usual.safetensors", folder)


HEADER = b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'
BEYOND = struct.pack("<Q", len(HEADER)) + HEADER + bytes(8)

RIGHT = {
    "predict-as-exported": ((predict, lambda folder: None), AS_IT_WAS),
    "train-as-exported": ((train, lambda folder: None), AS_IT_WAS),
    "resume-as-written": ((resume, lambda folder: None), AS_IT_WAS),
    "component-as-written": ((component, lambda folder: None), AS_IT_WAS),
    "last-as-written": ((last, lambda folder: None), "checkpoint-2"),
    # Code and pickles that lie beside are left alone.
    "predict-known-type-with-code": ((predict, coded()), AS_IT_WAS),
    "train-known-type-with-code": ((train, coded()), AS_IT_WAS),
    "predict-pickle-beside": (
        (predict, both(pickled("pytorch_model.bin"), pickled("training_args.bin"), pickled("model.pkl"))),
        AS_IT_WAS,
    ),
    "train-pickle-beside": ((train, both(pickled("pytorch_model.bin"), pickled("optimizer.pt"))), AS_IT_WAS),
    "predict-modules-beside": (
        (predict, both(content("torch.py", CODE), content("sitecustomize.py", CODE), content("__init__.py", CODE))),
        AS_IT_WAS,
    ),
    "predict-recipe-with-python": (
        (predict, content("recipe.yaml", "data: {labels: !!python/object/apply:os.system [touch ran]}\n")),
        AS_IT_WAS,
    ),
    "predict-recipe-torn": ((predict, content("recipe.yaml", "data: {lab")), AS_IT_WAS),
    "predict-in-shards": ((predict, shards("model-00001-of-00001.safetensors")), AS_IT_WAS),
    "predict-half-precision-in-config": ((predict, edited(CONFIG, dtype="float16")), AS_IT_WAS),
    "predict-name-of-another-place": ((predict, edited(CONFIG, _name_or_path="../../elsewhere")), AS_IT_WAS),
    "predict-unknown-quantization": (
        (predict, edited(CONFIG, quantization_config={"quant_method": "house"})),
        AS_IT_WAS,
    ),
    "predict-shards-above-the-folder": ((predict, shards("../a.safetensors")), AS_IT_WAS),
    "predict-unknown-fields": ((predict, edited(CONFIG, more="<b>", **{"../x": 1})), AS_IT_WAS),
    "last-torn-weights": ((last, torn(WEIGHTS)), "checkpoint-1"),
    "last-pickle-for-weights": ((last, pickled("usual.safetensors")), "checkpoint-1"),
    "last-one-file-more": ((last, longer), "checkpoint-1"),
    "last-of-another-step": ((last, of_another_step), "checkpoint-1"),
    "last-manifest-gone": ((last, gone("manifest.json")), "checkpoint-1"),
    "last-manifest-of-nothing": ((last, content("manifest.json", '{"files": {}}')), "checkpoint-1"),
    "last-manifest-of-files-outside": (
        (last, content("manifest.json", '{"files": {"../../town/split.json": {"size": 1, "sha256": ""}}}')),
        "checkpoint-1",
    ),
    "last-manifest-of-negative-sizes": (
        (last, content("manifest.json", '{"files": {"config.json": {"size": -1, "sha256": null}}}')),
        "checkpoint-1",
    ),
    "last-none-left": ((last, lambda folder: [shutil.rmtree(f) for f in folder.parent.glob("checkpoint-*")]), NONE),
    "last-a-number-too-large": (
        (last, lambda folder: (folder.parent / f"checkpoint-{'9' * 30}").mkdir()),
        "checkpoint-2",
    ),
}
EXPORTS = {
    "config-gone": (gone(CONFIG), "Unrecognized model"),
    "config-empty": (content(CONFIG, ""), "is not a valid JSON file"),
    "config-torn": (torn(CONFIG), "is not a valid JSON file"),
    "config-a-list": (content(CONFIG, "[1]"), "model cannot be read ("),
    "config-a-number": (content(CONFIG, "7"), "model cannot be read ("),
    "config-null": (content(CONFIG, "null"), "model cannot be read ("),
    "config-binary": (content(CONFIG, b"\xff\xfe\0"), "is not a valid JSON file"),
    "config-deep": (content(CONFIG, '{"a":' * 100_000), "model cannot be read ("),
    "config-of-no-type": (without(CONFIG, "model_type"), "Unrecognized model"),
    "config-of-unknown-type": (edited(CONFIG, model_type="house"), "model type `house`"),
    "config-of-a-path": (edited(CONFIG, model_type="../../house"), "model type `../../house`"),
    "config-of-a-language-model": (
        edited(CONFIG, model_type="gpt2"),
        "a gpt2 model is no semantic segmentation model",
    ),
    "config-of-a-list-as-type": (edited(CONFIG, model_type=["segformer"]), "model cannot be read ("),
    "config-of-other-widths": (edited(CONFIG, hidden_sizes=[4, 4, 8, 8]), "model"),
    "config-of-texts-for-widths": (edited(CONFIG, hidden_sizes="wide"), "field 'hidden_sizes'"),
    "config-of-no-widths": (edited(CONFIG, hidden_sizes=[]), "model cannot be read ("),
    "config-of-null-for-depths": (edited(CONFIG, depths=None), "field 'depths'"),
    "config-of-unknown-precision": (edited(CONFIG, dtype="float7"), "float7"),
    "config-with-code-of-its-own": (coded(model_type="house"), "is not run"),
    "config-with-code-of-others": (
        edited(CONFIG, model_type="house", auto_map={"AutoConfig": "lab/other--house.Config"}),
        "is not run",
    ),
    "weights-gone": (gone(WEIGHTS), "no file named model.safetensors"),
    "weights-empty": (content(WEIGHTS, b""), "Error while deserializing header"),
    "weights-torn": (torn(WEIGHTS), "Error while deserializing header"),
    "weights-zeros": (content(WEIGHTS, bytes(256)), "Error while deserializing header"),
    "weights-beyond-the-end": (content(WEIGHTS, BEYOND), "Error while deserializing header"),
    "weights-of-long-header": (content(WEIGHTS, b"\xff" * 64), "Error while deserializing header"),
    "weights-a-pickle": (pickled(WEIGHTS), "Error while deserializing header"),
    "weights-a-pickle-of-torch": (pickled_by_torch(WEIGHTS, WEIGHTS), "Error while deserializing header"),
    "weights-a-pickle-by-its-name": (pickled_by_torch("pytorch_model.bin", WEIGHTS), "nothing of it was run"),
    "weights-git-lfs": (
        content(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "Error while deserializing header",
    ),
    "weights-of-no-tensor": (tensors(WEIGHTS, lambda known: {}), "lacks"),
    "weights-under-other-names": (tensors(WEIGHTS, lambda known: {f"x.{k}": v for k, v in known.items()}), "lacks"),
    "shards-gone": (both(shards("a.safetensors"), gone("a.safetensors")), "a.safetensors"),
    "kernel-of-the-hub": (edited(CONFIG, attn_implementation="lab/kernel"), "code of the Hub (lab/kernel)"),
    "kernel-of-the-hub-inside": (
        edited(CONFIG, backbone_config={"_attn_implementation": {"": "lab/kernel@main:f"}}),
        "code of the Hub (lab/kernel@main:f)",
    ),
    "adapters-beside": (
        content("adapter_config.json", '{"peft_type": "LORA", "base_model_name_or_path": "lab/other"}'),
        "holds adapters of peft (adapter_config.json)",
    ),
    "shards-index-torn": (both(shards("a.safetensors"), torn(f"{WEIGHTS}.index.json")), "Unterminated string"),
}
REFUSED = {
    **{f"predict-{name}": ((predict, harm), part) for name, (harm, part) in EXPORTS.items()},
    **{f"train-{name}": ((train, harm), part) for name, (harm, part) in EXPORTS.items()},
    "backbone-kernel-of-the-hub": (
        (backbone, edited(CONFIG, attn_implementation="lab/kernel")),
        "code of the Hub (lab/kernel)",
    ),
    "backbone-adapters-beside": ((backbone, content("adapter_config.json", "{}")), "holds adapters of peft"),
    "predict-weights-of-nan": (
        (predict, tensors(WEIGHTS, lambda known: {name: value * torch.nan for name, value in known.items()})),
        "has weights that are NaN or infinite",
    ),
    "predict-processor-gone": ((predict, gone(PROCESSOR)), "put its preprocessor_config.json there"),
    "predict-processor-torn": ((predict, torn(PROCESSOR)), "put its preprocessor_config.json there"),
    "predict-processor-a-list": ((predict, content(PROCESSOR, "[1]")), "preprocessor_config.json"),
    "predict-processor-with-code": (
        (
            predict,
            both(
                content("house.py", CODE),
                content(
                    PROCESSOR,
                    '{"auto_map": {"AutoImageProcessor": "house.P"}, "image_processor_type": "P"}',
                ),
            ),
        ),
        "preprocessor_config.json",
    ),
    "train-four-bands": (
        (
            train,
            both(
                edited(CONFIG, num_channels=4),
                tensors(
                    WEIGHTS,
                    lambda known: {
                        name: torch.cat([value, value[:, :1]], 1) if value.ndim == 4 and value.shape[1] == 3 else value
                        for name, value in known.items()
                    },
                ),
            ),
        ),
        "takes images of 4 bands",
    ),
    "predict-a-checkpoint-of-no-manifest": ((predict, content(STATE, "{}")), "it has no manifest.json"),
    "predict-another-manifest": ((predict, content("manifest.json", '{"files": {}}')), "is not in its manifest.json"),
    # ---- checkpoints whose manifest was made to fit
    **{
        f"component-{name}": ((component, harm), part)
        for name, harm, part in (
            ("weights-torn", torn(WEIGHTS), "checkpoint-2"),
            ("weights-a-pickle", pickled(WEIGHTS), "checkpoint-2"),
            ("usual-torn", torn("usual.safetensors"), "checkpoint-2"),
            ("usual-a-pickle", pickled("usual.safetensors"), "checkpoint-2"),
            ("usual-gone", gone("usual.safetensors"), "usual.safetensors is missing"),
            ("usual-of-no-tensor", tensors("usual.safetensors", lambda known: {}), "holds another model"),
            (
                "usual-of-another-model",
                tensors(
                    "usual.safetensors",
                    lambda known: {name: value[:1].clone() if value.ndim else value for name, value in known.items()},
                ),
                "holds another model",
            ),
            ("initial-gone", gone("initial.safetensors"), "initial.safetensors is missing"),
            ("initial-a-pickle", pickled("initial.safetensors"), "checkpoint-2"),
            ("initial-of-no-tensor", tensors("initial.safetensors", lambda known: {}), "initialisation are missing"),
            ("state-empty", content(STATE, ""), STATE),
            ("state-torn", torn(STATE), STATE),
            ("state-a-list", content(STATE, "[1]"), STATE),
            ("state-of-nothing", content(STATE, "{}"), "checkpoint-2"),
            ("state-of-text", edited(STATE, updates="many"), "checkpoint-2"),
        )
    },
    "component-state-of-unknown-method": ((component, edited(STATE, method="house")), "house"),
    "resume-usual-a-pickle": (
        (resume, pickled("usual.safetensors")),
        "checkpoint-1 holds another model or is damaged",
    ),
    "resume-another-method": ((resume, edited(STATE, method="joint")), "the checkpoint was made with method joint"),
    "resume-other-stages": ((resume, edited(STATE, stages=[])), "the checkpoint was made with stages []"),
    "resume-another-batch": ((resume, edited(STATE, global_batch=7)), "the checkpoint was made with global_batch 7"),
    "resume-optimizer-gone": ((resume, gone("optimizer.pt")), "it has no optimizer.pt"),
    "resume-optimizer-a-pickle": ((resume, pickled("optimizer.pt")), "nothing of it was run"),
    "resume-optimizer-a-pickle-of-torch": (
        (resume, pickled_by_torch("optimizer.pt", "optimizer.pt")),
        "nothing of it was run",
    ),
    "resume-scheduler-a-pickle": ((resume, pickled("scheduler.pt")), "nothing of it was run"),
    "resume-random-states-a-pickle": ((resume, pickled("rng_state.pth")), "nothing of it was run"),
    "resume-trainer-state-torn": ((resume, torn("trainer_state.json")), "trainer_state.json: cannot be read"),
    "resume-trainer-state-a-list": (
        (resume, content("trainer_state.json", "[]")),
        "trainer_state.json: cannot be read",
    ),
    # ---- results
    **{
        f"results-{name}": ((results, content("metrics.json", text)), "metrics.json: cannot be used")
        for name, text in {
            "empty": "",
            "torn": '{"method": "deft", "scores',
            "a-list": "[]",
            "null": "null",
            "of-nothing": "{}",
            "of-another-method": '{"method": "joint", "scores": {}}',
            "of-text-for-scores": '{"method": "deft", "scores": "high"}',
            "deep": "[" * 100_000,
            "binary": "\udcff".encode("utf-8", "surrogateescape"),
        }.items()
    },
    "results-a-folder": ((results, lambda folder: (folder / "metrics.json").mkdir()), "metrics.json: cannot be used"),
}
