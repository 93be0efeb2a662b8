"""What a run is trained with where nobody says: every choice with its reason, in one place.

Where a rate was measured, that was by `benchmarks/default_rates.py` on 48 images of real or drawn streets, on source
validation alone, one seed; `benchmarks/results/default_rates` has all of it. Nothing here opens a model or a file.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from deft_hf.models.kinds import Kind
from deft_hf.utils.machine import Machine

# Images of an optimizer step, at which the rates were measured.
BATCH = 8
_EPOCHS, _LEAST_STEPS, _MOST_STEPS = 30, 400, 20_000
_EVALUATIONS, _LEAST_EVERY, _MOST_EVERY = 10, 20, 2_000
_LOSS_LINES = 50
_MOST_WORKERS = 8
_LEAST_SCORED = 32  # images of a domain in an evaluation while training
# Bytes of a training step for each pixel of a crop: half of a ViT-B's or a SegFormer-B5's in float32.
_BYTES_PER_PIXEL = 16_000
_LARGEST_CROP = {"cpu": 256}


class Rates(NamedTuple):
    """Peak learning rates: of a pretrained encoder, and of the decoder, which is fresh or becomes another."""

    encoder: float
    decoder: float
    why: str


class Choice(NamedTuple):
    """A value that a recipe does not have, and why it is this one.

    Attributes:
        key (`str`):
            Key of a recipe, such as `training.learning_rate`.
        value (`Any`):
            The value.
        why (`str`):
            The reason in a few words.
    """

    key: str
    value: Any
    why: str

    def __str__(self) -> str:
        return f"{self.key}: {self.value} ({self.why})"


_RATES: dict[tuple[Kind, str], Rates] = {
    ("convolutional", "adamw"): Rates(1e-3, 5e-3, "as good as any of seven tried on a MobileNetV2, streets"),
    ("convolutional", "sgd"): Rates(1e-1, 1e-1, "the highest and best of four tried on a MobileNetV2, streets"),
    # In runs of 60 to 120 steps 5e-5 for both parts was better; of the 400 and more that are usual, nothing is known.
    ("transformer", "adamw"): Rates(1e-4, 1e-3, "usual for such networks; lower ones may be better in short runs"),
    ("transformer", "sgd"): Rates(1e-2, 1e-1, "usual for SGD with such networks; not measured here"),
}


def learning_rates(kind: Kind, optimizer: str = "adamw_torch") -> Rates:
    """The learning rates that a model of this kind is fine-tuned at.

    Args:
        kind (`str`):
            `convolutional` or `transformer`, see [`~deft_hf.models.kinds.encoder_kind`].
        optimizer (`str`, *optional*, defaults to `"adamw_torch"`):
            A value of `optim`. All but SGD, Adam's relatives for the most part, have AdamW's rates.
    """
    return _RATES[kind, "sgd" if optimizer == "sgd" else "adamw"]


def steps_of_epochs(epochs: float, images: int, batch: int) -> int:
    """Optimizer steps of so many passes over the source images, the last one begun counting in full."""
    return max(1, math.ceil(epochs * images / batch))


def crop_size(image: tuple[int, int], device: str = "cpu", multiple: int = 32) -> tuple[int, int]:
    """Height and width of crops for images of a size: the whole image, up to what a device trains in reasonable time.

    Args:
        image (`tuple[int, int]`):
            Height and width of the images, in pixels.
        device (`str`, *optional*, defaults to `"cpu"`):
            Type of the device.
        multiple (`int`, *optional*, defaults to `32`):
            What the model wants both sides to be multiples of.
    """
    largest = _LARGEST_CROP.get(device, 512)
    height, width = (max(min(side, largest) // multiple, 1) * multiple for side in image)
    return height, width


def images_at_once(batch: int, crop: tuple[int, int], machine: Machine) -> int:
    """How many of a process's `batch` images one pass takes, of a crop size, so that half the memory suffices."""
    most = max(1, int(machine.memory / 2 / (_BYTES_PER_PIXEL * crop[0] * crop[1])))
    return max(size for size in range(1, batch + 1) if batch % size == 0 and size <= most)


def choose(
    kind: Kind,
    optimizer: str,
    images: int,
    crop: tuple[int, int],
    machine: Machine,
    *,
    validation: Sequence[str] = (),
    scored: Sequence[int] = (),
    given: Mapping[str, Any] = {},
    selects: bool = True,
) -> list[Choice]:
    """What to train with, for each key of a recipe that is not given.

    Keys that belong together, such as those of evaluation and checkpoints, are chosen where none of them is given.

    Args:
        kind (`str`):
            Kind of the encoder.
        optimizer (`str`):
            A value of `optim`.
        images (`int`):
            Number of source images.
        crop (`tuple[int, int]`):
            Height and width of crops, in pixels.
        machine (`Machine`):
            What it will run on.
        validation (`Sequence[str]`, *optional*, defaults to `()`):
            Names of the domains of source validation.
        scored (`Sequence[int]`, *optional*, defaults to `()`):
            Number of images of each domain that is scored.
        given (`Mapping[str, Any]`, *optional*, defaults to `{}`):
            By key, the values that the recipe has.
        selects (`bool`, *optional*, defaults to `True`):
            Evaluate while training and export the best checkpoint.

    Returns:
        `list[Choice]`: in the order of the reasons; a value of `None` takes a key away that others stand for now.
    """
    chosen = [*_batch(images, crop, machine, given)]
    batch = batch_size({**given, **{choice.key: choice.value for choice in chosen}}, machine.processes)
    length = _length(images, batch, given)
    steps = next((choice.value for choice in length if choice.key == "training.max_steps"), None)
    if steps is None:
        steps = int(given.get("training.max_steps", -1))
        if steps < 1:
            steps = steps_of_epochs(float(given.get("training.num_train_epochs", 3)), images, batch)
    chosen += [*length, *_rates(kind, optimizer, given)]
    chosen += _selection(steps, batch, validation, scored, given) if selects else []
    chosen += [*_logging(steps, given), *_precision(machine, given), *_workers(machine, given)]
    return chosen


def batch_size(values: Mapping[str, Any], processes: int) -> int:
    """Images of an optimizer step over all processes."""
    return (
        int(values.get("training.per_device_train_batch_size") or BATCH)
        * int(values.get("training.gradient_accumulation_steps") or 1)
        * processes
    )


def wished_batch(images: int, processes: int, given: Mapping[str, Any]) -> int:
    """Images of an optimizer step where the recipe does not say by which passes they come about."""
    wished = given.get("training.batch_size")
    if wished is None:
        # Two for each device at least, for BatchNorm; of a handful of images not more than there are.
        wished = math.ceil(max(min(BATCH, images), 2 * processes) / processes) * processes
    return int(wished)


def _batch(images: int, crop: tuple[int, int], machine: Machine, given: Mapping[str, Any]) -> list[Choice]:
    own = ("training.per_device_train_batch_size", "training.gradient_accumulation_steps")
    if _any(own, given):
        return []
    asked, processes = given.get("training.batch_size"), machine.processes
    batch = wished_batch(images, processes, given)
    each = batch // processes
    size = images_at_once(each, crop, machine)
    why = f"batch_size {batch}" if asked is not None else f"{batch} images a step, at which the rates were measured"
    chosen = [
        Choice(own[0], size, f"{why}; {size} at once by crop size and memory"),
        Choice(own[1], each // size, f"makes {batch} of {size} x {processes} devices"),
    ]
    return chosen + ([Choice("training.batch_size", None, "said by the two above")] if asked is not None else [])


def _length(images: int, batch: int, given: Mapping[str, Any]) -> list[Choice]:
    epochs = given.get("training.epochs")
    if epochs is None and _any(("training.max_steps", "training.num_train_epochs"), given):
        return []
    if epochs is not None:
        steps, why = steps_of_epochs(epochs, images, batch), f"{epochs:g} epochs"
    else:
        wished = steps_of_epochs(_EPOCHS, images, batch)
        steps = min(max(wished, _LEAST_STEPS), _MOST_STEPS)
        bound = "" if steps == wished else f", but {_LEAST_STEPS} to {_MOST_STEPS:,} steps"
        why = f"{_EPOCHS} epochs{bound}"
    chosen = [Choice("training.max_steps", steps, f"{why} of {images:,} images in batches of {batch}")]
    if epochs is not None:
        chosen.append(Choice("training.epochs", None, "said by max_steps"))
    if not _any(("method.decoder_warmup_steps",), given):
        chosen.append(Choice("method.decoder_warmup_steps", math.ceil(steps / 10), "a tenth, as the authors"))
    return chosen


def _rates(kind: Kind, optimizer: str, given: Mapping[str, Any]) -> list[Choice]:
    encoder, decoder = "method.encoder_learning_rate", "method.decoder_learning_rate"
    if _any(("training.learning_rate",), given) or (_any((encoder,), given) and _any((decoder,), given)):
        return []
    rates = learning_rates(kind, optimizer)
    chosen = []
    if not _any((encoder,), given):
        chosen.append(Choice("training.learning_rate", rates.encoder, f"{kind} encoder, {optimizer}: {rates.why}"))
    if not _any((decoder,), given):
        chosen.append(Choice(decoder, rates.decoder, "what is fresh learns faster than what is pretrained"))
    if optimizer == "sgd" and not _any(("training.optim_args",), given):
        chosen.append(Choice("training.optim_args", "momentum=0.9", "Trainer's SGD has none"))
    if not _any(("training.warmup_steps", "training.lr_scheduler_type"), given):
        chosen.append(Choice("training.warmup_steps", 0.05, "the rate rises in the first twentieth, then falls to 0"))
    if not _any(("training.weight_decay",), given):
        decay = 1e-4 if optimizer == "sgd" else 1e-2
        chosen.append(Choice("training.weight_decay", decay, "usual with this optimizer"))
    return chosen


SELECTION = (
    "training.eval_strategy",
    "training.eval_steps",
    "training.save_strategy",
    "training.save_steps",
    "training.save_total_limit",
    "training.load_best_model_at_end",
    "training.metric_for_best_model",
)


def _selection(
    steps: int, batch: int, validation: Sequence[str], scored: Sequence[int], given: Mapping[str, Any]
) -> list[Choice]:
    if not validation or _any(SELECTION, given):
        return []
    every = min(max(steps // _EVALUATIONS, _LEAST_EVERY), _MOST_EVERY)
    values = ("steps", every, "steps", every, 1, True, f"{validation[0]}_mean_iou")
    others = f", the first of {len(validation)} domains" if len(validation) > 1 else ""
    why = (
        f"about {_EVALUATIONS} evaluations, {_LEAST_EVERY} to {_MOST_EVERY:,} steps apart",
        "so that the best is there",
        "the best and the last",
        f"the best on source validation{others}",
    )
    reasons = ("there is source validation", why[0], *[why[1]] * 2, why[2], "the last is not always the best", why[3])
    chosen = [Choice(*row) for row in zip(SELECTION, values, reasons, strict=True)]
    # Evaluation takes about a tenth of the time of a run that trains on twice as many images as it scores.
    most = max(_LEAST_SCORED, steps * batch // 2 // (max(steps // every, 1) * max(len(scored), 1)))
    if max(scored, default=0) > most and not _any(("data.images_while_training",), given):
        chosen.append(Choice("data.images_while_training", most, "while training; the final scores are of all images"))
    return chosen


def _logging(steps: int, given: Mapping[str, Any]) -> list[Choice]:
    if _any(("training.logging_steps", "training.logging_strategy"), given):
        return []
    every = min(max(steps // _LOSS_LINES, 1), 50)
    return [Choice("training.logging_steps", every, f"at least {_LOSS_LINES} lines of losses in a run")]


def _precision(machine: Machine, given: Mapping[str, Any]) -> list[Choice]:
    if not machine.bf16 or _any(("training.bf16", "training.fp16"), given):
        return []
    return [Choice("training.bf16", True, "the device computes in it, twice as fast and in half the memory")]


def _workers(machine: Machine, given: Mapping[str, Any]) -> list[Choice]:
    keys = ("training.dataloader_num_workers", "training.dataloader_persistent_workers")
    if machine.device == "cpu" or _any(keys, given):
        return []  # a CPU has no core to spare, and starting a process takes longer than a small epoch
    if not machine.forks:
        return [Choice(keys[0], 0, "starting a process takes seconds on this system, at every evaluation")]
    workers = min(machine.cores - 1, _MOST_WORKERS)
    if workers < 1:
        return [Choice(keys[0], 0, "one core")]
    return [
        Choice(keys[0], workers, f"{machine.cores} cores"),
        Choice(keys[1], True, "none is started anew each epoch"),
    ]


def _any(keys: Collection[str], given: Mapping[str, Any]) -> bool:
    return any(given.get(key) is not None for key in keys)
