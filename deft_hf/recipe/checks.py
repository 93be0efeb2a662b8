"""What can be wrong with a recipe whose keys and values are all right one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from deft_hf.models.heads import HEADS
from deft_hf.recipe.data import DataSection
from deft_hf.recipe.domains import Entry, FolderEntry, is_hub_name
from deft_hf.recipe.protocols import problem as protocol_problem
from deft_hf.recipe.sections import MethodSection, ModelSection, PublishSection
from deft_hf.recipe.training import TrainingSection
from deft_hf.trainer.defaults import SELECTION
from deft_hf.utils.errors import UserError


class Sections(Protocol):
    """The sections of a [`~deft_hf.recipe.Recipe`]."""

    model: ModelSection
    method: MethodSection
    data: DataSection
    training: TrainingSection
    publish: PublishSection


def contradictions(recipe: Sections) -> Iterator[str]:
    """Yields `KEY: what was found, what was expected, what to do` for everything that is wrong."""
    yield from _model(recipe)
    yield from _method(recipe)
    yield from _labels(recipe.data)
    yield from _places(recipe.data)
    yield from _names(recipe.data)
    yield from _licenses(recipe)
    yield from _weights(recipe.data)
    yield from _sampling(recipe.data)
    yield from _colors(recipe.data)
    yield from filter(None, [protocol_problem(recipe.data)])
    yield from _resized(recipe.data)
    yield from _corruptions(recipe.data)
    yield from _leaks(recipe.data)
    yield from _scored(recipe.data)
    yield from _sizes(recipe.data)
    yield from _training(recipe)
    yield from _interpolation(recipe)
    yield from _publish(recipe)


def _model(recipe: Sections) -> Iterator[str]:
    model = recipe.model
    if model.checkpoint is None and model.backbone is None:
        yield (
            "model.checkpoint: missing, expected a Hub name, a folder, or embedded (the tiny SegFormer of this "
            "package); or a model.backbone with a model.head"
        )
        return
    if model.checkpoint is not None and model.backbone is not None:
        yield f"model.backbone: found {model.backbone} beside model.checkpoint {model.checkpoint}; keep one of them"
        return
    if model.backbone is None and (model.head or model.head_config):
        yield "model.head: found beside a model.checkpoint, which has its head; name a model.backbone instead"
    if model.backbone is not None:
        if model.head is None:
            yield f"model.head: missing, expected what to put on the backbone, one of {', '.join(HEADS)}"
        if model.encoder is not None:
            yield f"model.encoder: found {model.encoder}, but under a head the encoder is the backbone; remove it"
        if model.backbone == "embedded":
            yield "model.backbone: found embedded, which is a model.checkpoint (the tiny SegFormer of this package)"
    name = model.pretrained
    if name == "embedded" or (name and Path(model.resolved_checkpoint()).exists()):
        return
    if name.startswith((".", "~", "/")) or not is_hub_name(name):
        yield f"model.{model.key}: found {name!r}, which is neither a folder here nor a Hub name (owner/name)"


def _method(recipe: Sections) -> Iterator[str]:
    name, baselines = recipe.method.name, recipe.method.baselines
    if name in baselines:
        yield f"method.baselines: found {name}, which is already method.name; remove it"
    for method in _repeated(baselines):
        yield f"method.baselines: found {method} twice; keep one"


def _labels(data: DataSection) -> Iterator[str]:
    try:
        data.label_space()
    except UserError as error:
        yield f"data.{error}"
        return
    annotated = False
    for key, entry in _entries(data):
        annotated |= isinstance(entry, FolderEntry) and entry.annotations is not None
        if not entry.labelled:
            if not key.startswith("data.unseen."):
                yield f"{key}.labels: found none, but only an unseen place may be without labels; say what masks hold"
            if entry.corruption is not None:
                yield f"{key}.corruption: found {entry.corruption} beside labels: none, where nothing is scored"
        else:
            yield from _readable(key, entry, data)
    if not annotated and (names := data.label_space().other_names):
        yield (
            f"data.labels.ids: found the name {next(iter(names))}, which only label exports have (a domain with "
            "annotations), expected the raw ids of masks"
        )


def _readable(key: str, entry: Entry, data: DataSection) -> Iterator[str]:
    try:
        names = entry.label_space(data.labels).names
    except UserError as error:
        if entry.labels is None:
            yield f"data.{error}: {key} has the layout {getattr(entry, 'layout', None)}"
            return
        names = ()
    if entry.labels is not None and names != data.label_space().names:
        yield f"{key}.labels: found {entry.labels}, whose classes are not those of data.labels; remove it"


def _places(data: DataSection) -> Iterator[str]:
    if data.root is not None and not Path(data.root).expanduser().is_dir():
        yield (
            f"data.root: found no folder {data.root} (seen from {Path.cwd()}); correct it, or override data.root=PATH"
        )
        return
    for key, entry in _entries(data):
        if problem := entry.problem(data.root):
            yield f"{key}.{problem}"


def _licenses(recipe: Sections) -> Iterator[str]:
    known = {entry.name for _, entry in _entries(recipe.data)}
    for name in recipe.publish.data_licenses:
        if name not in known:
            names = ", ".join(sorted(known))
            yield f"publish.data_licenses.{name}: found no domain of this name, expected one of {names}"


def _names(data: DataSection) -> Iterator[str]:
    for key, entry in _entries(data):
        if not entry.name or any(letter.isspace() or letter in "/\\" for letter in entry.name):
            yield f"{key}.name: found {entry.name!r}, expected a name for metric keys, without spaces and slashes"
    for name in _repeated([entry.name for entry in [*data.validation, *data.unseen]]):
        yield f"data.unseen: found {name} as the name of several domains of validation and unseen; give each its own"
    scored = {entry.name for entry in [*data.validation, *data.unseen]}
    for name in sorted(scored & {f"{name}_usual" for name in scored}):
        yield (
            f"data: found the domains {name.removesuffix('_usual')} and {name}; eval_{name}_mean_iou would be the "
            "score of the usual component on the former too; give one another name"
        )


def _weights(data: DataSection) -> Iterator[str]:
    for key, entry in _entries(data):
        if entry.weight is not None and not key.startswith("data.source."):
            yield f"{key}.weight: found {entry.weight}, but only source domains are drawn by weight; remove it"
    without = [entry.name for entry in data.source if entry.weight is None]
    if 0 < len(without) < len(data.source):
        yield f"data.source: found no weight for {', '.join(without)}; give every source domain a weight, or none"


def _sampling(data: DataSection) -> Iterator[str]:
    for key in sorted(data.model_fields_set):
        of = next((name for name in ("class_uniform", "rare_class") if key.startswith(f"{name}_")), data.sampling)
        value = getattr(data, key)
        if of != data.sampling and value != DataSection.model_fields[key].default:
            yield f"data.{key}: found {value} beside data.sampling: {data.sampling}; set {of} there, or remove it"


def _colors(data: DataSection) -> Iterator[str]:
    if data.photometric_distortion and data.color_jitter is not None:
        yield (
            f"data.color_jitter: found {list(data.color_jitter)} beside data.photometric_distortion, which takes its "
            "place; remove one of them"
        )
    if data.style is None and data.style_probability != DataSection.model_fields["style_probability"].default:
        yield f"data.style_probability: found {data.style_probability} without data.style; name one, or remove it"


def _resized(data: DataSection) -> Iterator[str]:
    for key, entry in _entries(data):
        changes = [name for name in ("eval_size", "halve", "crop_or_pad") if getattr(entry, name)]
        if changes and key.startswith("data.source."):
            yield f"{key}.{changes[0]}: found in source, but only scored domains have it; remove it"
        elif changes and not entry.labelled:
            yield f"{key}.{changes[0]}: found beside labels: none, where nothing is scored; remove it"
        if entry.halve and entry.crop_or_pad is not None:
            yield f"{key}.crop_or_pad: found beside halve; keep one of them"
        if entry.pad_label != "ignore" and entry.crop_or_pad is None:
            yield f"{key}.pad_label: found {entry.pad_label} without crop_or_pad; give its side, or remove it"


def _corruptions(data: DataSection) -> Iterator[str]:
    for key, entry in _entries(data):
        if entry.corruption is None:
            if entry.severity is not None:
                yield f"{key}.severity: found {entry.severity} without a corruption; name one, or remove it"
        elif not key.startswith("data.unseen."):
            yield (
                f"{key}.corruption: found {entry.corruption}, but only unseen domains are corrupted: source and "
                "validation are the images as they are; move the entry to data.unseen"
            )


def _leaks(data: DataSection) -> Iterator[str]:
    for index, entry in enumerate(data.validation):
        if (known := _sharing(entry, data.source, data)) is not None:
            yield (
                f"data.validation.{index}: found images that {known.name} of source has, on which no checkpoint can "
                "be chosen; give each a split of its own, or remove it"
            )
    for index, unseen in enumerate(data.unseen):
        # Nothing was fitted to the validation images themselves, so their corrupted copies are unseen.
        fitted = data.source if unseen.corruption else [*data.source, *data.validation]
        if (known := _sharing(unseen, fitted, data)) is not None:
            yield f"data.unseen.{index}: found images that {known.name} of source or validation has; remove or move it"


def _sharing(entry: Entry, others: list[Entry], data: DataSection) -> Entry | None:
    return next((other for other in others if entry.shares_images(other, data.root)), None)


def _scored(data: DataSection) -> Iterator[str]:
    if not (data.validation or any(entry.labelled for entry in data.unseen)):
        yield "data.validation: missing, expected at least one domain to score, here or with labels in data.unseen"


def _sizes(data: DataSection) -> Iterator[str]:
    if data.crop_size is not None and data.image_size is not None:
        largest = [round(side * data.scale[1]) for side in data.image_size]
        if any(crop > side for crop, side in zip(data.crop_size, largest, strict=True)):
            yield (
                f"data.crop_size: found {list(data.crop_size)}, larger than images ever are (image_size x scale[1] = "
                f"{largest}), so every crop would be padded; use a smaller one"
            )
    if data.stride is None:
        return
    if data.window is None:
        yield f"data.stride: found {list(data.stride)} without data.window; give a window, or remove it"
    elif any(step > side for step, side in zip(data.stride, data.window, strict=True)):
        yield f"data.stride: found {list(data.stride)}, expected at most data.window, {list(data.window)}"


def _training(recipe: Sections) -> Iterator[str]:
    training, data = recipe.training, recipe.data
    if training.max_steps == 0 or (training.max_steps < 0 and training.num_train_epochs <= 0):
        yield "training.max_steps: found nothing to train, expected 1 step or more (or training.epochs)"
    yield from _plain_words(training)
    yield from _class_weights(training, data)
    if training.metrics:
        from deft_hf.scoring.metrics import unknown  # loads torch

        yield from (f"training.{problem}" for problem in unknown(training.metrics))
    if training.early_stop is not None:
        yield from _early_stop(training, data)
    by_score = training.load_best_model_at_end or training.save_strategy == "best"
    by_score = by_score or training.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
    if not (training.metric_for_best_model or by_score):
        return
    if not data.validation:
        yield "data.validation: missing, expected source data, the only data that training may choose a checkpoint on"
        return
    from deft_hf.scoring.metrics import further  # loads torch
    from deft_hf.trainer.evaluation import LOSS, METRICS

    more = [metric.key for metric in further(training.metrics or ())]
    known = [f"{entry.name}_{metric}" for entry in data.validation for metric in (*METRICS, *more, LOSS)]
    chosen = (training.metric_for_best_model or "").removeprefix("eval_")
    if chosen not in known:
        unseen = any(chosen.startswith(f"{entry.name}_") for entry in data.unseen)
        why = " (unseen domains are reported, never selected on)" if unseen else ""
        found = f"found {chosen}" if chosen else "missing"
        yield f"training.metric_for_best_model: {found}, expected one of {', '.join(known)}{why}"


def _class_weights(training: TrainingSection, data: DataSection) -> Iterator[str]:
    weights = training.class_weights
    try:
        names = data.label_space().names
    except UserError:  # said of data.labels
        return
    if isinstance(weights, list) and len(weights) != len(names):
        known = ", ".join(names)
        yield f"training.class_weights: found {len(weights)}, expected {len(names)}, one for each of {known}"


def _plain_words(training: TrainingSection) -> Iterator[str]:
    said = training.model_fields_set
    for word, others in (
        ("epochs", ("max_steps", "num_train_epochs")),
        ("batch_size", ("per_device_train_batch_size", "gradient_accumulation_steps")),
    ):
        if getattr(training, word) is None:
            continue
        if beside := [f"training.{key} {getattr(training, key)}" for key in others if key in said]:
            yield f"training.{word}: found {getattr(training, word)} beside {' and '.join(beside)}; keep one of them"


def _early_stop(training: TrainingSection, data: DataSection) -> Iterator[str]:
    found = f"training.early_stop: found {training.early_stop}"
    if not data.validation:
        yield f"{found} without data.validation, expected source data, the only data that training may stop by"
    elif _says_how_to_select(training) and not training.load_best_model_at_end:
        yield (
            f"{found} without training.load_best_model_at_end; set that, with eval_strategy, save_strategy and "
            "metric_for_best_model, or leave out what training says of evaluation and saving, and it is chosen"
        )


def _says_how_to_select(training: TrainingSection) -> bool:
    return any(f"training.{key}" in SELECTION for key in training.model_fields_set)


def _interpolation(recipe: Sections) -> Iterator[str]:
    if recipe.method.component == "interpolated" and not recipe.data.validation:
        yield (
            "data.validation: missing, expected source data, on which method.component: interpolated chooses its point"
        )


def _publish(recipe: Sections) -> Iterator[str]:
    name = recipe.publish.repo_id
    if recipe.publish.push_to_hub and name is None:
        yield "publish.repo_id: missing, expected owner/name, since publish.push_to_hub is true"
    elif name is not None and not is_hub_name(name):
        yield f"publish.repo_id: found {name!r}, expected owner/name"
    if recipe.publish.every_save and not recipe.publish.push_to_hub:
        yield "publish.every_save: true without publish.push_to_hub, so that nothing is pushed; set that too"


def _entries(data: DataSection) -> Iterator[tuple[str, Entry]]:
    for section, entries in (("source", data.source), ("validation", data.validation), ("unseen", data.unseen)):
        for index, entry in enumerate(entries):
            yield f"data.{section}.{index}", entry


def _repeated(names: list[str]) -> list[str]:
    return [name for name, times in Counter(names).items() if times > 1]
