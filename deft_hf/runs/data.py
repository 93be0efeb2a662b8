"""The data of a run: its domains, as a recipe names them, and the sets that a trainer reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from accelerate import PartialState
from transformers import BaseImageProcessor

from deft_hf.data.class_index import shared_indices
from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.data.corruptions import corrupted
from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.data.layouts import layout_places, load_layout
from deft_hf.data.learnable import check_scored, check_sources
from deft_hf.data.own_transform import OwnTransform
from deft_hf.data.places import Place
from deft_hf.data.roles import Domains, without_labels
from deft_hf.data.samplers import ClassUniform, RareClass
from deft_hf.data.sampling import EvaluationSet, TrainingSet
from deft_hf.data.sizes import CropOrPad, ResizedDomain, halve
from deft_hf.data.transforms import EvalTransform, TrainTransform
from deft_hf.models.processor import normalization
from deft_hf.recipe.data import DataSection
from deft_hf.recipe.domains import Entry, FolderEntry, HubEntry, StreetsEntry
from deft_hf.utils.console import say
from deft_hf.utils.errors import UserError


def input_folders(data: DataSection) -> Iterator[Path]:
    """The folders that images and masks are read from.

    Args:
        data (`DataSection`):
            The `data` section of a recipe.
    """
    for entry in (*data.source, *data.validation, *data.unseen):
        if isinstance(entry, FolderEntry):
            folder = entry.resolved_folder(data.root)
            if entry.annotations is not None or not entry.labelled:
                yield entry.images_folder(data.root)
                continue
            places = [entry] if entry.layout is None else layout_places(entry.layout, entry.part, entry.condition)
            yield from (folder / name for place in places for name in (place.images, place.masks))
        elif isinstance(entry, HubEntry) and Path(entry.hub).is_dir():
            yield Path(entry.hub)


def load_domains(data: DataSection) -> Domains:
    """The domains of a recipe, each decoded once (`data.check`) with a summary of what it holds.

    Args:
        data (`DataSection`):
            The `data` section of a recipe.

    Raises:
        UserError: If files are wrong; the message lists everything that is, in all domains.
    """
    sections = [
        [open_domain(entry, data) for entry in entries if entry.labelled]
        for entries in (data.source, data.validation, data.unseen)
    ]
    source, validation, unseen = sections
    places = [_place(entry, data) for entry in data.unseen if not entry.labelled]
    domains = Domains(source, validation, unseen, places)
    if not data.check:
        return domains
    main = PartialState().is_local_main_process
    reports = [domain.check(progress=main, shared=True, cached=True) for section in sections for domain in section]
    problems = []
    for report in reports:
        if main:
            print(report)
        try:
            report.raise_if_bad(skip_unreadable=data.unreadable == "skip")
        except UserError as error:
            problems.append(str(error))
    for place in domains.places:
        if main:
            print(f"{place.name}: {len(place)} images without labels")
        unreadable = place.unreadable(progress=main, shared=True)
        if unreadable and (data.unreadable == "stop" or len(unreadable) == len(place)):
            problems += unreadable
    if problems:
        raise UserError("\n".join(problems))
    for warning in [*check_sources(reports[: len(source)]), *check_scored(reports[len(source) :])]:
        say(f"warning: {warning}")
    return domains


def open_domain(entry: Entry, data: DataSection) -> Domain:
    """A domain of a recipe; its files are listed, and none is decoded.

    Args:
        entry (`Entry`):
            The entry of the domain.
        data (`DataSection`):
            The section that it stands in.

    Raises:
        UserError: If the place has no images, or cannot be read.
    """
    domain = _domain(entry, data, entry.label_space(data.labels))
    if entry.halve:
        return ResizedDomain(domain, halve)
    if entry.crop_or_pad is not None:
        pad_label = IGNORE_INDEX if entry.pad_label == "ignore" else entry.pad_label
        return ResizedDomain(domain, CropOrPad(entry.crop_or_pad, pad_label))
    return domain


def _domain(entry: Entry, data: DataSection, labels: LabelSpace) -> Domain:
    if entry.corruption is not None:
        clean = _domain(entry.model_copy(update={"corruption": None}), data, labels)
        return corrupted(clean, entry.corruption, entry.severity, name=entry.name)
    if isinstance(entry, FolderEntry) and entry.layout is not None:
        folder = entry.resolved_folder(data.root)
        return load_layout(entry.layout, folder, labels, entry.portion, entry.name, entry.condition)
    if isinstance(entry, FolderEntry):
        folder, split = entry.resolved_folder(data.root), entry.portion
        if entry.annotations is not None:
            return Domain.from_annotations(folder, labels, entry.annotations, split, entry.name, data.value_range)
        options = entry.model_dump(include={"name", "images", "masks", "image_suffix", "mask_suffix"})
        return Domain.from_folder(folder, labels, **options, split=split, value_range=data.value_range)
    if isinstance(entry, HubEntry):
        options = entry.model_dump(include={"split", "name", "image_column", "mask_column", "config", "revision"})
        return Domain.from_hub(entry.hub, labels, **options, value_range=data.value_range)
    assert isinstance(entry, StreetsEntry)
    return Domain.from_streets(
        entry.streets, labels=labels, **entry.model_dump(include={"count", "seed", "size", "name"})
    )


def _place(entry: Entry, data: DataSection) -> Place:
    if isinstance(entry, FolderEntry):
        return Place.from_folder(
            entry.resolved_folder(data.root),
            entry.name,
            entry.images,
            entry.portion,
            entry.image_suffix,
            data.value_range,
        )
    if isinstance(entry, HubEntry):
        options = entry.model_dump(include={"split", "name", "image_column", "config", "revision"})
        return Place.from_hub(entry.hub, **options, value_range=data.value_range)
    return without_labels(_domain(entry, data, entry.label_space(data.labels)))


def training_set(data: DataSection, source: list[Domain], processor: BaseImageProcessor, seed: int) -> TrainingSet:
    """What a trainer trains on: the source domains, augmented.

    Args:
        data (`DataSection`):
            Sizes, augmentation and weights.
        source (`list[Domain]`):
            The domains of `data.source`.
        processor (`BaseImageProcessor`):
            Image processor, for mean and deviation.
        seed (`int`):
            Seed of the order of images; see `TrainingSet`.
    """
    mean, std = normalization(processor)
    assert data.crop_size is not None  # the section fills it in
    transform = TrainTransform(
        crop=data.crop_size,
        scale=data.scale,
        flip=data.flip,
        vertical_flip=data.vertical_flip,
        turns=data.turns,
        rotation=data.rotation,
        jitter=data.color_jitter,
        jitter_probability=data.color_jitter_probability,
        blur=data.blur,
        max_class_share=data.max_class_share,
        recolor=data.recolor,
        photometric_distortion=data.photometric_distortion,
        style=data.style,
        style_probability=data.style_probability,
        resize=data.image_size,
        mean=mean,
        std=std,
        own=own_transform(data),
    )
    weights = [entry.weight for entry in data.source if entry.weight is not None]  # of all or of none
    samplers = class_samplers(data, source)
    return TrainingSet(source, transform, weights or None, seed, unreadable=data.unreadable, samplers=samplers)


def class_samplers(data: DataSection, source: list[Domain]) -> list[ClassUniform] | list[RareClass] | None:
    """For each source domain, what draws its images by class (`data.sampling`); `None` for `uniform`.

    Args:
        data (`DataSection`):
            The `data` section of a recipe.
        source (`list[Domain]`):
            The domains of `data.source`.
    """
    if data.sampling == "uniform":
        return None
    if data.sampling == "class_uniform":
        indices = shared_indices(source, data.class_uniform_tile)
        uniform = [ClassUniform(index, data.class_uniform_share) for index in indices]
        for domain, each in zip(source, uniform, strict=True):
            classes, places = len(each.centroids), sum(map(len, each.centroids))
            say(f"{domain.name}: {data.class_uniform_share:.0%} of the crops by {classes} classes in {places} places")
        return uniform
    assert data.crop_size is not None
    area = data.crop_size[0] * data.crop_size[1] / 512**2
    pixels = data.rare_class_pixels or round(3000 * min(area, 1))
    crop_pixels = data.rare_class_crop_pixels or round(1500 * area)
    indices = shared_indices(source)
    rare = [RareClass(index, data.rare_class_temperature, pixels, crop_pixels) for index in indices]
    for domain, sampler in zip(source, rare, strict=True):
        drawn = sorted(zip(sampler.probabilities, sampler.classes, strict=True), reverse=True)
        told = [f"{domain.labels.names[label]} {share:.1%}" for share, label in drawn if share >= 0.0005]
        say(f"{domain.name}: crops by class: {', '.join(told)}")
    return rare


def own_transform(data: DataSection) -> OwnTransform | None:
    """The user's own transform (`data.transform`), imported and tried out once on noise; `None` without one.

    Args:
        data (`DataSection`):
            The `data` section of a recipe.

    Raises:
        UserError: It cannot be imported, fails, or returns something else than it should.
    """
    if data.transform is None:
        return None
    assert data.crop_size is not None
    own = OwnTransform(data.transform, classes=len(data.label_space().names))
    own.try_out(data.crop_size)
    return own


def evaluation_sets(
    data: DataSection, evaluated: list[Domain], processor: BaseImageProcessor, images: int | None = None
) -> dict[str, EvaluationSet]:
    """By name, the domains that a trainer scores.

    Args:
        data (`DataSection`):
            Sizes, and what an unreadable image does.
        evaluated (`list[Domain]`):
            The domains.
        processor (`BaseImageProcessor`):
            Image processor, for mean and deviation.
        images (`int`, *optional*):
            How many of each at most; `None`: all.
    """
    mean, std = normalization(processor)
    sizes = data.shown_sizes()
    return {
        domain.name: EvaluationSet(
            _thinned(domain, images), EvalTransform(sizes[domain.name], mean, std), data.unreadable
        )
        for domain in evaluated
    }


def _thinned(domain: Domain, images: int | None) -> Domain:
    """`images` of the domain, evenly spaced: neighbouring frames of a drive are alike."""
    if images is None or images >= len(domain):
        return domain
    return domain.select([index * len(domain) // images for index in range(images)])
