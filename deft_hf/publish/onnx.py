"""Export of a model to ONNX, for runtimes without torch, and a check that it gives the same logits."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from deft_hf.models.families import SegmentationFamily
from deft_hf.models.opening import inference_family
from deft_hf.utils.errors import UserError, first_line

NAME = "model.onnx"
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_TOLERANCE = 1e-4  # of the largest logit: runtimes fuse and order sums in their own ways


class _Logits(nn.Module):
    def __init__(self, model: nn.Module, family: SegmentationFamily) -> None:
        super().__init__()
        self.model, self.family = model, family

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.family.semantic_logits(self.model, pixel_values)


def check_onnx() -> None:
    """Check that the required packages are installed.

    Raises:
        UserError: If a package is missing.
    """
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"ONNX needs {', '.join(missing)}: pip install 'deft-hf[onnx]'.")


def export_onnx(model: PreTrainedModel, folder: str | os.PathLike, size: tuple[int, int]) -> float:
    """Write `model.onnx`, from `pixel_values` (N, 3, height, width) float32, for any N, to `logits` (N, C, h, w).

    The file is run with onnxruntime on another batch and its logits are compared with the model's.

    Args:
        model (`PreTrainedModel`):
            Model in float32 on the CPU; it is not changed.
        folder (`str` or `os.PathLike`):
            Folder to write to; it must exist.
        size (`tuple[int, int]`):
            Height and width of the images, in pixels.

    Returns:
        `float`: The largest absolute difference of a logit.

    Raises:
        UserError: If torch cannot export a model of this kind to ONNX.
        RuntimeError: If the file gives other logits.
    """
    import onnxruntime

    path = Path(folder) / NAME
    wrapped = _Logits(model, inference_family(model)).eval()
    example = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    try:
        with _quiet():
            torch.onnx.export(
                wrapped,
                (example,),
                path,
                dynamo=True,
                input_names=["pixel_values"],
                output_names=["logits"],
                dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
                external_data=model.num_parameters() > 4e8,  # protobuf files are limited to two gigabytes
            )
    except Exception as error:  # the exporter's passes fail in many ways
        path.unlink(missing_ok=True)
        raise UserError(
            f"torch {torch.__version__} cannot export {model.config.model_type} to ONNX "
            f"({type(error).__name__}: {first_line(error)}): export it without ONNX."
        ) from error
    other = example[:1].flip(-1).contiguous()
    with torch.no_grad():
        expected = wrapped(other)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(["logits"], {"pixel_values": other.numpy()})[0])
    difference = float((found - expected).abs().max())
    if found.shape != expected.shape or not difference <= _TOLERANCE * float(expected.abs().max()):
        raise RuntimeError(f"{path} gives other logits than the model: they differ by up to {difference:.3g}")
    return difference


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's reports of its steps and of optional packages."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
