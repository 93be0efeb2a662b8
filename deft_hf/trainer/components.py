"""The models that a run's folders hold: the exported one, and what a checkpoint has beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel

from deft_hf.methods import compose, recorded
from deft_hf.methods.composition import Composition
from deft_hf.methods.core.pathways import DualPathway
from deft_hf.methods.wise_ft import interpolate
from deft_hf.models.families import resolve_family
from deft_hf.models.opening import open_model
from deft_hf.trainer.checkpoints import load_pathways, read_state
from deft_hf.utils.errors import UserError
from deft_hf.utils.files import CONFIG, STATE
from deft_hf.utils.integrity import checkpoints, refuse_damaged

Which = Literal["generalized", "usual", "interpolated"]


def model_folder(folder: str | Path, statistics_anew: bool = False) -> Path:
    """A folder that holds a model, as it was written; see [`~deft_hf.utils.integrity.refuse_damaged`].

    Raises:
        UserError: If it holds none, or is a checkpoint that is damaged.
    """
    folder = Path(folder).expanduser()
    refuse_damaged(folder, statistics_anew)
    if not (folder / CONFIG).is_file() or not list(folder.glob("model*.safetensors")):
        raise UserError(
            f"{folder} holds no model (config.json and model.safetensors): give a final folder or a checkpoint-N."
        )
    return folder


def load_component(
    folder: str | Path,
    which: Which | None = None,
    alpha: float | None = None,
    encoder: str | None = None,
    trust_remote_code: bool = False,
    statistics_anew: bool = False,
) -> PreTrainedModel:
    """One of the models of a checkpoint, in float32 on the CPU, adapters merged.

    Args:
        folder (`str` or `Path`):
            A checkpoint, or, for the model that it was exported with, a final folder.
        which (`Which`, *optional*):
            `generalized`: the moving average, or the trained model where nothing is averaged. `usual`: the trained
            weights. `interpolated`: (1 - α) θ_init + α θ_usual, on the line from the last stage's initialisation to
            the trained weights (WiSE-FT, Wortsman et al., CVPR 2022, arXiv 2109.01903); BatchNorm statistics are the
            usual ones. None: the model that the folder opens as.
        alpha (`float`, *optional*):
            Share of the trained weights in `interpolated`, from 0 to 1.
        encoder (`str`, *optional*):
            Dotted path of the encoder, for a model that deft_hf does not know.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Run Python code that the folder holds; without it, none is ever run.
        statistics_anew (`bool`, *optional*, defaults to `False`):
            Whether the caller takes the BatchNorm statistics anew, so that those of the folder do not matter.

    Raises:
        UserError: If the folder is damaged or does not hold this model; `alpha` is missing or out of its range.
    """
    folder = model_folder(folder, statistics_anew)
    interpolated = which == "interpolated"
    if interpolated != (alpha is not None) or not 0 <= (alpha or 0) <= 1:
        raise UserError(f"alpha: found {alpha}, expected a number from 0 to 1 with `interpolated`, and none else")
    plain = open_model(folder, trust_remote_code=trust_remote_code)
    if which is None:
        return plain
    composition, pathways = _pathways(folder, plain, encoder)
    model = pathways.generalized if which == "generalized" else pathways.usual
    if alpha is not None:
        trained = {name: p.detach().clone() for name, p in model.named_parameters() if name in pathways.initial}
        interpolate(model, pathways.initial, trained, alpha)
    found = composition.plain(model, pathways.family).eval().requires_grad_(True)
    assert isinstance(found, PreTrainedModel)  # as `plain` is
    return found


def _pathways(folder: Path, model: PreTrainedModel, encoder: str | None) -> tuple[Composition, DualPathway]:
    if not (folder / STATE).is_file():
        present = ", ".join(path.name for path in checkpoints(folder)) or "none"
        raise UserError(
            f"{folder} holds the exported model alone; the components are in checkpoints. It has: {present}."
        )
    composition = compose(recorded(read_state(folder)))
    family = composition.adapt(model, resolve_family(model, encoder))
    pathways = composition.pathways(model, family)
    load_pathways(pathways, folder)
    return composition, pathways
