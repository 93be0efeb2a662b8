"""Exports a checkpoint, or one of its components, as a plain Hub folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import yaml
from PIL import Image
from transformers import BaseImageProcessor
from transformers.utils import logging

from deft_hf.data.labels import default_palette
from deft_hf.data.places import Place
from deft_hf.methods.core.batchnorm import batchnorm_modules
from deft_hf.models.opening import inference_family
from deft_hf.models.processor import open_processor
from deft_hf.publish.export import export_generalized, verify_export
from deft_hf.publish.onnx import check_onnx, export_onnx
from deft_hf.recipe import Recipe
from deft_hf.runs.batchnorm import reestimate_batchnorm, reestimate_on_place
from deft_hf.runs.segmenter import Segmenter
from deft_hf.trainer.components import Which, load_component, model_folder
from deft_hf.utils.errors import UserError
from deft_hf.utils.files import CONFIG, RECIPE
from deft_hf.utils.integrity import writing
from deft_hf.utils.outputs import claim_output
from deft_hf.utils.places import check_temporary, refuse_overlap
from deft_hf.utils.result import Result

if TYPE_CHECKING:
    from pandas import DataFrame

logger = logging.get_logger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Exported(Result):
    """An export that was opened in a fresh process and gave the logits of the model it was made of.

    Attributes:
        folder (`str`):
            The folder that was written.
        checkpoint (`str`):
            What it was exported from.
        which (`str` or `None`):
            The component, see [`export`].
        alpha (`float` or `None`):
            Place of an interpolated model between initialisation (0) and usual component (1).
        dtype (`str`):
            Type of the weights.
        files (`list[str]`):
            Names of the files in the folder.
        checked (`dict[str, Any]`):
            What [`~deft_hf.publish.export.verify_export`] measured: `max_difference`, `logits_shape`, `seconds`.
        batchnorm_batches (`int`, *optional*):
            How many batches the BatchNorm statistics were estimated on.
        batchnorm_changed (`float`, *optional*):
            Share of the pixels of `batchnorm_images` whose class these statistics changed.
        onnx_max_difference (`float`, *optional*):
            Largest difference of a logit of `model.onnx`.
    """

    folder: str
    checkpoint: str
    which: str | None
    alpha: float | None
    dtype: str
    files: list[str]
    checked: dict[str, Any]
    batchnorm_batches: int | None = None
    batchnorm_changed: float | None = None
    onnx_max_difference: float | None = None

    def __str__(self) -> str:
        said = f"{self.folder}: {', '.join(self.files)}; opens in a fresh process, with equal logits"
        if self.batchnorm_changed is None:
            return said
        return f"{said}; the new BatchNorm statistics change {100 * self.batchnorm_changed:.1f} % of the pixels there"

    def to_pandas(self) -> DataFrame:
        """One row: where it lies, what it is, and how far its logits are from the model's."""
        import pandas

        listed = {
            name: str(value) if isinstance(value, list | tuple) else value for name, value in self.to_dict().items()
        }
        return pandas.DataFrame([listed]).set_index("folder")

    def to_dict(self) -> dict[str, Any]:
        """All of it in one flat mapping, without what was not measured."""
        facts = asdict(self)
        checked = facts.pop("checked")
        for name in ("batchnorm_batches", "batchnorm_changed", "onnx_max_difference"):
            if facts[name] is None:
                del facts[name]
        return {**facts, **checked}


def export(
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    *,
    which: Which | None = None,
    alpha: float | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    max_shard_size: str = "5GB",
    batchnorm: Literal["keep", "reestimate"] = "keep",
    batchnorm_images: str | os.PathLike | None = None,
    recipe: Recipe | None = None,
    onnx: tuple[int, int] | bool = False,
    trust_remote_code: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Writes a checkpoint as a plain Hub folder, safetensors only, and opens it in a fresh process to compare logits.

    Args:
        checkpoint (`str` or `os.PathLike`):
            A `checkpoint-N`, or a final folder.
        out (`str` or `os.PathLike`):
            Folder to write; it must be new or empty.
        which (`"generalized"`, `"usual"` or `"interpolated"`, *optional*):
            Component of a checkpoint, see [`~deft_hf.trainer.components.load_component`]; by default the one that it
            opens as.
        alpha (`float`, *optional*):
            Of an interpolated model, from 0 (the last stage's initialisation) to 1 (the usual component).
        dtype (`str`, *optional*, defaults to `"float32"`):
            Type of the weights: `"float32"`, `"bfloat16"` or `"float16"`.
        max_shard_size (`str`, *optional*, defaults to `"5GB"`):
            Larger weights are spread over several files.
        batchnorm (`str`, *optional*, defaults to `"keep"`):
            `"reestimate"` takes BatchNorm statistics anew on source images of the recipe.
        batchnorm_images (`str` or `os.PathLike`, *optional*):
            A folder of images without labels: BatchNorm statistics are taken anew on these instead, see
            [`~deft_hf.runs.batchnorm.reestimate_on_place`]. Export the model without it too, and compare both.
        recipe (`Recipe`, *optional*):
            Where source images, the encoder's place and the window come from; by default the run's, see
            [`run_recipe`].
        onnx (`tuple[int, int]` or `bool`, *optional*, defaults to `False`):
            Write `model.onnx` too, for images of this (height, width); `True` takes the processor's size.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Run Python code that the folder holds; without it, none is ever run.
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace what an earlier export wrote to `out`; never anything else.

    Returns:
        `Exported`: what was written and how it was checked.

    Raises:
        UserError: `out` holds something else, the checkpoint is damaged or lacks the component, no recipe is found
            where one is needed, `dtype` cannot hold the weights, or the model cannot become ONNX. Nothing is left of
            the export.

    Example:

    ```python
    from deft_hf import export

    export("outputs/quickstart/checkpoint-800", "small", which="usual", dtype="bfloat16")
    ```
    """
    for name, value, known in (("dtype", dtype, DTYPES), ("batchnorm", batchnorm, ("keep", "reestimate"))):
        if value not in known:
            raise UserError(f"{name}: found {value!r}, expected one of {', '.join(known)}")
    anew = batchnorm == "reestimate" or batchnorm_images is not None
    folder = model_folder(Path(checkpoint), statistics_anew=True)  # `load_component` looks at them
    check_temporary()
    with claim_output(out, "export", overwrite) as place:
        refuse_overlap(out, [folder / CONFIG])
        reestimated = batchnorm == "reestimate" and batchnorm_images is None
        target = None if batchnorm_images is None else Place.from_folder(Path(batchnorm_images).expanduser())
        recipe = run_recipe(folder) if recipe is None and reestimated else recipe
        encoder, window = _kept(folder) if recipe is None else (recipe.model.encoder, recipe.data.window)
        processor = open_processor(str(folder), trust_remote_code=trust_remote_code)
        size = _onnx_size(onnx, processor)
        model = load_component(folder, which, alpha, encoder, trust_remote_code, statistics_anew=anew)
        batches = difference = changed = None
        if target is not None:
            names = [str(name) for name in (model.config.id2label or {}).values()]
            family, palette = inference_family(model), np.array(default_palette(len(names)), np.uint8)
            changed = reestimate_on_place(Segmenter(model, processor, family, names, palette, window=window), target)
        elif recipe is not None and reestimated:
            batches = reestimate_batchnorm(model, processor, recipe.data, recipe.training_arguments())
        elif which == "interpolated" and batchnorm_modules(model):
            logger.warning(
                "The BatchNorm statistics are those of the usual component; reestimate them to fit the weights."
            )
        with place.scratch() as partial:
            with writing(partial, lambda: "Make room and export again."):
                export_generalized(model, partial, processor, dtype=DTYPES[dtype], max_shard_size=max_shard_size)
            checked = verify_export(partial, model, _example(), DTYPES[dtype], window)
            if size is not None:
                difference = export_onnx(model, partial, size)
            files = sorted(path.name for path in partial.iterdir())
            for name in sorted(files, key=lambda name: name == CONFIG):  # it comes last: what has it is complete
                os.replace(partial / name, place.file(name))
    return Exported(str(place.path), str(folder), which, alpha, dtype, files, checked, batches, changed, difference)


def run_recipe(checkpoint: str | os.PathLike, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of the run that a checkpoint belongs to.

    Args:
        checkpoint (`str` or `os.PathLike`):
            A `checkpoint-N`, or a final folder.
        overrides (`Sequence[str]`, *optional*, defaults to `()`):
            `key.sub=value` each, values that replace the recipe's.

    Raises:
        UserError: There is no recipe in the folder or above it, or it is wrong.
    """
    folder = Path(checkpoint).expanduser()
    path = _recipe_file(folder)
    if path is None:
        raise UserError(
            f"recipe: estimating BatchNorm statistics anew takes source images, and no {RECIPE} lies in {folder} or "
            "above it; name a recipe."
        )
    return Recipe.load(path, overrides)


def _recipe_file(folder: Path) -> Path | None:
    places = [folder.absolute(), *list(folder.absolute().parents)[:3]]  # baselines/METHOD/checkpoint-N lies deepest
    return next((place / RECIPE for place in places if (place / RECIPE).is_file()), None)


def _kept(folder: Path) -> tuple[str | None, tuple[int, int] | None]:
    """The encoder's place and the window in the recipe of the run, whose data may be gone."""
    path = _recipe_file(folder)
    try:
        recipe = yaml.safe_load(path.read_text("utf-8")) if path else {}
        return recipe["model"].get("encoder"), recipe["data"].get("window")
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return None, None  # of no run


def _onnx_size(onnx: tuple[int, int] | bool, processor: BaseImageProcessor) -> tuple[int, int] | None:
    if onnx is False:
        return None
    check_onnx()
    if onnx is not True:
        return onnx
    own = getattr(processor, "size", None) or {}
    if not (getattr(processor, "do_resize", False) and own.get("height") and own.get("width")):
        raise UserError("onnx: the processor leaves images at their own size; name a size, such as 512,1024")
    return own["height"], own["width"]


def _example() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8))
