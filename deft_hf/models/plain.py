"""Plain PyTorch models, such as those of segmentation_models_pytorch: what `transformers` models know themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import PreTrainedModel

from deft_hf.data.collate import item_tensors
from deft_hf.data.sampling import EvaluationSet, TrainingSet
from deft_hf.models.families import SegmentationFamily
from deft_hf.utils.errors import UserError
from deft_hf.utils.files import CARD, CONFIG, WEIGHTS

_README = """# {name}

The state dict of a plain PyTorch model, fine-tuned with deft_hf. It is no `transformers` model: `from_pretrained` does
not load it. Build the model as it was built for training, with {count} classes, and load the weights:

```python
from safetensors.torch import load_model

model = {name}(...)  # {module}.{name}
load_model(model, "{weights}")
model.eval()
```

`config.json` has what is known of it: the class, the path of its encoder and the names of its classes.
"""


def is_plain(model: nn.Module) -> bool:
    """Whether a model lacks the config, saving and loading of `transformers` models."""
    return not isinstance(model, PreTrainedModel)


def class_names(model: nn.Module, family: SegmentationFamily, *datasets: Any) -> list[str]:
    """Names of a model's classes, in the order of its logits.

    A plain model does not know how many there are, so it is run on the first image of the data. The names are those of
    the data's label space, if it has one.

    Args:
        model (`nn.Module`):
            Model, on any device.
        family (`SegmentationFamily`):
            How its logits are computed.
        datasets (`Any`):
            Training and evaluation datasets as passed to `DeFTTrainer`; the first that is not `None` is used.

    Raises:
        UserError: If a plain model comes without data, or does not return logits of shape (N, C, h, w) for images.
    """
    if isinstance(model, PreTrainedModel):
        config: Any = model.config
        return [config.id2label[index] for index in range(config.num_labels)]
    dataset = next((data for data in datasets if data is not None), None)
    if dataset is None:
        raise UserError(f"{type(model).__name__} does not say how many classes it has: pass a data set.")
    item = next(iter(dataset)) if isinstance(dataset, IterableDataset) else dataset[0]
    count = _logits(model, family, item_tensors(item)["pixel_values"]).shape[1]
    if isinstance(dataset, TrainingSet | EvaluationSet):
        domain = dataset.domains[0] if isinstance(dataset, TrainingSet) else dataset.domain
        if len(domain.labels.names) == count:
            return list(domain.labels.names)
    return [f"LABEL_{index}" for index in range(count)]


@torch.no_grad()
def _logits(model: nn.Module, family: SegmentationFamily, image: Tensor) -> Tensor:
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    try:
        outputs = model.eval()(image[None].to(device))
    finally:
        for module, training in modes:
            module.training = training
    if not isinstance(outputs, Tensor) and not hasattr(outputs, "logits"):
        found = f"returns {type(outputs).__name__}"
    elif (logits := family.objective.logits(outputs)).ndim != 4 or not logits.is_floating_point():
        found = f"returns a {logits.dtype} tensor of shape {tuple(logits.shape)}"
    else:
        return logits
    raise UserError(
        f"{type(model).__name__} {found} for one image, expected logits (N, classes, height, width): pass a model "
        "whose forward returns them alone, without an auxiliary output."
    )


def save_plain(model: nn.Module, state: dict[str, Tensor], names: list[str], encoder: str, folder: str | Path) -> None:
    """Write a plain model's state dict, a `config.json` that describes it, and a `README.md` on how to load it.

    Args:
        model (`nn.Module`):
            Model to save.
        state (`dict[str, Tensor]`):
            Its full state dict, gathered where parameters are sharded.
        names (`list[str]`):
            Names of its classes.
        encoder (`str`):
            Dotted path of its encoder.
        folder (`str` or `Path`):
            Folder to write to; created if it does not exist.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    cls = type(model)
    facts = {
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "encoder": encoder,
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }
    (folder / CONFIG).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    text = _README.format(name=cls.__name__, module=cls.__module__, count=len(names), weights=WEIGHTS)
    (folder / CARD).write_text(text, encoding="utf-8")
