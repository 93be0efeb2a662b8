"""Export of the generalized model as a plain Hub folder, and a check that it loads without deft_hf."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from deft_hf.models.families import fixed_size, objective_of
from deft_hf.models.own import OWN
from deft_hf.models.saving import save_callable
from deft_hf.utils.errors import UserError

_STORED = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}

# Run in a separate process. Tensors read from a file keep its alignment, and CPU kernels round differently on
# unaligned memory; copies are aligned, as all tensors are in the process that trained the model.
_RELOAD = """
import sys
sys.modules["deft_hf"] = None
import copy, json, torch, transformers
from PIL import Image
from safetensors.torch import save_file

folder, threads, auto_class, names, inputs, size, trusted = sys.argv[1:]
trusted = json.loads(trusted)
torch.set_num_threads(int(threads))
processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=trusted)
model, keys = getattr(transformers, auto_class).from_pretrained(
    folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=trusted
)
model = copy.deepcopy(model).eval()
pixel_values = processor(images=Image.open("example.png"), return_tensors="pt")["pixel_values"].clone()
if size := json.loads(size):
    pixel_values = torch.nn.functional.interpolate(pixel_values, size)
inputs = {n: torch.tensor([v]) if isinstance(v, list) else v for n, v in json.loads(inputs).items()}
with torch.inference_mode():
    outputs = model(pixel_values=pixel_values, **inputs)
problems = {kind: sorted(map(str, names)) for kind, names in keys.items() if names}
answer = {"pixel_values": pixel_values} | {name: outputs[name].contiguous() for name in json.loads(names)}
save_file(answer, "answer.safetensors", metadata={"problems": json.dumps(problems)})
"""


def export_generalized(
    model: PreTrainedModel,
    output_dir: str | os.PathLike,
    processor: BaseImageProcessor,
    card: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: str = "5GB",
) -> None:
    """Write a model as a plain Hub folder that loads with transformers alone.

    With a model class that transformers does not have, such as DeepLabV3+, its one file of code is written too, and
    `from_pretrained` needs `trust_remote_code=True` where deft_hf is not imported.

    Writes `config.json`, `model.safetensors`, `preprocessor_config.json` and, with a card, `README.md`, each of them
    atomically. Old weights in the folder are replaced; all else (checkpoints, results, figures) stays.

    Args:
        model (`PreTrainedModel`):
            Model to export, `trainer.generalized_model` after training; it is not changed.
        output_dir (`str` or `os.PathLike`):
            Folder to write to; created if it does not exist.
        processor (`BaseImageProcessor`):
            Image processor that prepares images as in evaluation; see `segmentation_processor`.
        card (`str`, *optional*):
            Text of the model card; `None` keeps an existing README.
        dtype (`torch.dtype`, *optional*):
            Type of the saved weights and buffers; the model's by default.
        max_shard_size (`str`, *optional*, defaults to `"5GB"`):
            Largest size of one file of weights; larger models are split into `model-00001-of-0000N.safetensors`.

    Raises:
        UserError: If `dtype` cannot hold the weights.

    Example:

    ```python
    >>> from deft_hf import export_generalized
    >>> from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessorPil

    >>> model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=3))  # or trainer.generalized_model
    >>> export_generalized(model, "exported", SegformerImageProcessorPil())
    >>> SegformerForSemanticSegmentation.from_pretrained("exported").config.num_labels
    3

    ```
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if dtype is not None:
        model = _rounded(model, dtype)
    # Inside the folder, which may be a separate mount: files can be moved only within one file system.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as partial:
        save_callable(model, partial, max_shard_size=max_shard_size)
        processor.save_pretrained(partial)
        if card is not None:
            Path(partial, "README.md").write_text(card, encoding="utf-8")
        written = {path.name for path in Path(partial).iterdir()}
        for name in written:
            os.replace(Path(partial, name), folder / name)
    for path in weight_files(folder):
        if path.name not in written:
            path.unlink()  # left by an export in more or fewer shards, and would be loaded instead of this one


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder that `from_pretrained` reads weights from, and their index."""
    return [*folder.glob("model.safetensors*"), *folder.glob("model-*-of-*.safetensors")]


def _rounded(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    rounded = copy.deepcopy(model)
    rounded.to(dtype)  # type: ignore[arg-type]  # transformers wraps it and loses `self`
    after = rounded.state_dict()
    for name, before in model.state_dict().items():
        if before.isfinite().all() and not after[name].isfinite().all():
            raise UserError(f"dtype: {name} has values that {dtype} cannot hold: choose bfloat16 or float32.")
    return rounded


def verify_export(
    output_dir: str | os.PathLike,
    model: PreTrainedModel,
    example: Image.Image,
    dtype: torch.dtype | None = None,
    size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Load an export in a fresh process that cannot import deft_hf, and compare its outputs bit for bit.

    The outputs compared are those that semantic logits are computed from: `logits`, or the class and mask logits of
    the queries. Both models run on the CPU in float32 and eval mode, with the same number of threads, on the example
    as the exported processor prepares it; the model has its weights rounded to `dtype`. The network is not used.

    Args:
        output_dir (`str` or `os.PathLike`):
            Folder that `export_generalized` wrote.
        model (`PreTrainedModel`):
            Model that was exported; it is not changed.
        example (`Image.Image`):
            Any image; converted to RGB.
        dtype (`torch.dtype`, *optional*):
            Type that it was exported in; the model's by default.
        size (`tuple[int, int]`, *optional*):
            (height, width) that the prepared example is brought to, such as those of the windows that the model is
            shown; default: the only ones that it takes, or else those that the processor gives.

    Returns:
        `dict[str, Any]`: `max_difference` (0.0), `logits_shape` (N, C, h, w) of the semantic logits, `seconds`.

    Raises:
        RuntimeError: If the folder does not load or run, holds weights of another type, or gives other logits; the
            message says what differs.

    Example:

    ```python
    >>> from deft_hf import export_generalized, verify_export
    >>> from PIL import Image
    >>> from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessorPil

    >>> model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=3))
    >>> export_generalized(model, "exported", SegformerImageProcessorPil(size={"height": 64, "width": 64}))
    >>> verify_export("exported", model, example=Image.new("RGB", (64, 64)))["max_difference"]
    0.0

    ```
    """
    start = time.perf_counter()
    folder = Path(output_dir).resolve()
    _check_dtype(folder, dtype or model.dtype)
    objective = objective_of(model.config.model_type)
    how = [objective.auto_class, json.dumps(objective.outputs), json.dumps(objective.inputs(model.config))]
    how.append(json.dumps(size or fixed_size(model.config)))
    # Made by code that lies in the folder: ours, or of a repository that was trusted.
    how.append(json.dumps(type(model) in OWN or type(model).__module__.startswith("transformers_modules")))
    with tempfile.TemporaryDirectory() as work:
        example.convert("RGB").save(Path(work, "example.png"))
        loaded = subprocess.run(
            [sys.executable, "-c", _RELOAD, str(folder), str(torch.get_num_threads()), *how],
            cwd=work,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
        )
        if loaded.returncode:
            raise RuntimeError(f"{folder} cannot be used without deft_hf:\n{loaded.stderr.strip()}")
        with safe_open(Path(work, "answer.safetensors"), framework="pt") as answer:
            problems = json.loads(answer.metadata()["problems"])
            pixel_values = answer.get_tensor("pixel_values").clone()
            found = {name: answer.get_tensor(name).clone() for name in objective.outputs}
    if problems:
        raise RuntimeError(f"{folder} does not hold the weights of a {type(model).__name__}: {problems}")
    reference = _on_cpu(model, dtype)
    with torch.inference_mode():
        outputs = objective.forward(reference, pixel_values)
        shape = objective.logits(outputs).shape
    for name, value in found.items():
        if not torch.equal(value, outputs[name]):
            what = _difference(folder, reference, name, value, outputs[name])
            raise RuntimeError(f"{folder} is not the model that was exported: {what}")
    return {
        "max_difference": max(float((value - outputs[name]).abs().max()) for name, value in found.items()),
        "logits_shape": tuple(shape),
        "seconds": time.perf_counter() - start,
    }


def _check_dtype(folder: Path, dtype: torch.dtype) -> None:
    for path in weight_files(folder):
        if path.suffix != ".safetensors":
            continue
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():
                # Integer counters, such as BatchNorm's, are not weights.
                found = weights.get_slice(name).get_dtype()
                if found.startswith(("F", "BF")) and found != _STORED[dtype]:
                    raise RuntimeError(f"{path}: {name} is {found}, but the export is in {dtype}")


def _on_cpu(model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A new float32 model of the same class with the weights rounded to `dtype`.

    It has the attention kernel of a plain load.
    """
    config = type(model.config).from_dict(model.config.to_dict())
    with torch.random.fork_rng(devices=[]):  # initialization draws random weights
        rebuilt = type(model)(config).float()
    weights = model.state_dict()
    if dtype is not None:
        weights = {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights.items()}
    rebuilt.load_state_dict(weights)
    return rebuilt.eval()


def _difference(folder: Path, reference: PreTrainedModel, name: str, found: Tensor, expected: Tensor) -> str:
    """How the output `name` of an export differs from that of its model, and where to look first."""
    if found.shape != expected.shape:
        return f"{name} of shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    restored = type(reference).from_pretrained(folder, dtype=torch.float32, local_files_only=True).state_dict()
    names = [key for key, value in reference.state_dict().items() if not torch.equal(value, restored[key])]
    tensors = f"{len(names)} tensors differ ({', '.join(names[:5])})" if names else "the weights are equal"
    return f"{name} differ by up to {float((found - expected).abs().max()):.3g}; {tensors}"
