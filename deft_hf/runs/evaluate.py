"""Scores any model on the domains of a recipe."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from tqdm import tqdm

from deft_hf.data.domains import Domain
from deft_hf.data.roles import Domains
from deft_hf.data.servers import check_names, id_table, server_of, write_archive
from deft_hf.data.sizes import ResizedDomain, halve
from deft_hf.data.unreadable import Reader
from deft_hf.models.processor import segmentation_processor
from deft_hf.recipe import Recipe
from deft_hf.runs.batches import segmented
from deft_hf.runs.data import input_folders, load_domains
from deft_hf.runs.evaluation import PANELS, Evaluation
from deft_hf.runs.extremes import OVERLAYS, draw_extremes
from deft_hf.runs.places import look_at, write_findings
from deft_hf.runs.provenance import data_lists, hardware, versions
from deft_hf.runs.segmenter import Segmenter
from deft_hf.scoring.bootstrap import Counts, intervals
from deft_hf.scoring.confusion import ConfusionMatrix, Scores
from deft_hf.scoring.extremes import extremes
from deft_hf.scoring.inference import probabilities_of
from deft_hf.scoring.metrics import further, unknown
from deft_hf.scoring.report import (
    INTERVALS,
    MOST_PANELS,
    PanelRow,
    of_a_panel,
    save_json,
    save_panels,
)
from deft_hf.scoring.tally import REGIONS, Tally
from deft_hf.scoring.test_time import Views
from deft_hf.utils.errors import UserError
from deft_hf.utils.files import METRICS, TABLE
from deft_hf.utils.integrity import writing
from deft_hf.utils.outputs import OutputFolder, claim_output
from deft_hf.utils.places import name_problem, refuse_overlap
from deft_hf.utils.text import markdown_text


def evaluate(
    model: str | os.PathLike,
    recipe: Recipe,
    out: str | os.PathLike,
    *,
    name: str | None = None,
    revision: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    server: str | None = None,
    pictures: bool = True,
    overwrite: bool = False,
    progress: bool = True,
) -> Evaluation:
    """Scores a model on the validation and unseen domains of a recipe and writes tables and pictures.

    The model sees images as the recipe shows them: `data.eval_size` or that of a domain, `data.window` and
    `data.stride`; those of one size go through it `training.per_device_eval_batch_size` at a time, large ones fewer.
    Beside IoU and accuracy it is scored by `training.metrics`.

    Args:
        model (`str` or `os.PathLike`):
            Hub name, final folder, export or checkpoint of any segmentation model.
        recipe (`Recipe`):
            Its `data` section, `training.metrics` and the batch size are what counts.
        out (`str` or `os.PathLike`):
            Folder to write to: `results/metrics.json`, `results/table.md`, `figures/panels.png`; of places without
            labels `results/places.json`, `figures/places/` and `to_label/`. It must be new or empty.
        name (`str`, *optional*):
            What tables call the model; by default the last part of `model`.
        revision (`str`, *optional*, defaults to `main`):
            Branch, tag or commit on the Hub.
        device (`str`, *optional*):
            Such as `cpu` or `cuda:1`; by default an accelerator where there is one.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Run Python code of the model's repository; without it, none is ever run.
        server (`str`, *optional*):
            `cityscapes`, `acdc` or `wilddash`: write `DOMAIN/SERVER.zip` too, for each domain whose images are called
            as those of this benchmark, see [`~deft_hf.data.servers`]. It is made of the `pictures`, which have the
            images' own size at whatever size the model sees them; domains that are themselves halved, cropped or
            padded are refused.
        pictures (`bool`, *optional*, defaults to `True`):
            Write the classes of every image as PNG too, see [`Segmenter.save`].
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace what an earlier evaluation wrote to `out`; never anything else.
        progress (`bool`, *optional*, defaults to `True`):
            Show progress bars on a terminal.

    Returns:
        `Evaluation`: the scores.

    Raises:
        UserError: The model cannot be opened or has other classes than the recipe, the data cannot be read, an id
            would lead out of `out`, `out` holds something else, lies among the data or cannot be written to, or
            `server` does not take the classes, names or sizes of what is predicted.

    Example:

    ```python
    from deft_hf import Recipe, evaluate

    found = evaluate("outputs/quickstart", Recipe.load("quickstart"), "scores")
    print(found.table())
    print(found.scores["night"].mean_iou)
    ```
    """
    model = os.fspath(model)
    refuse_overlap(out, input_folders(recipe.data))
    with claim_output(out, "evaluate", overwrite) as folder:
        segmenter = recipe_segmenter(model, recipe, revision, device, trust_remote_code)
        unchecked = recipe.data.model_copy(update={"check": False})  # each image is read once, when it is scored
        recipe = recipe.model_copy(update={"data": unchecked})
        domains = load_domains(recipe.data)
        submitted = [] if server is None else _submitted(server, domains, pictures)
        found = score(
            segmenter,
            domains.validation,
            domains.unseen,
            name=name or Path(model).name,
            metrics=recipe.training.metrics or (),
            unreadable=recipe.data.unreadable,
            batch_size=recipe.training.per_device_eval_batch_size,
            pictures=folder if pictures else None,
            progress=progress,
        )
        places = look_at({found.name: segmenter}, domains, progress)
        facts = {
            "model": model,
            "revision": revision,
            "scores": found.score_dicts(),
            "intervals": found.intervals,
            "extremes": found.extremes,
            "unreadable": found.unreadable,
            "data": data_lists(validation=domains.validation, unseen=domains.unseen),
            "recipe": yaml.safe_load(recipe.to_yaml()),
            "versions": versions(),
            "hardware": hardware(),
        }
        with writing(folder.path, lambda: "Make room and start again."):
            looked = [
                "\n\n".join([f"## {markdown_text(one.place)}, without labels", *one.tables(found.labels.names)])
                for one in places
            ]
            table = "\n\n".join([found.table(), INTERVALS, *found.further_tables(), *found.class_tables(), *looked])
            folder.file(TABLE).write_text(table + "\n", encoding="utf-8")
            if found.examples:
                save_panels(folder.file(PANELS), found.examples, found.labels, domains=len(found.scores))
            if recipe.publish.best_and_worst and any(found.extremes.values()):
                draw_extremes(folder.file(OVERLAYS), segmenter, domains.evaluated, found.extremes)
            if places:
                write_findings(folder.file, places, domains.labels)
            archives = [f"{domain.name}/{server}.zip" for domain in submitted]
            for domain, archive in zip(submitted, archives, strict=True):
                written = {key: folder.path / domain.name / "classes" / f"{key}.png" for key in domain.ids}
                read = {key: path for key, path in written.items() if path.is_file()}
                write_archive(folder.file(archive), server_of(server or ""), domain.labels.names, read)
            save_json(folder.file(METRICS), facts)
    return replace(found, folder=folder.path, places=places, archives=archives)


def score(
    segmenter: Segmenter,
    validation: Sequence[Domain] = (),
    unseen: Sequence[Domain] = (),
    *,
    name: str = "model",
    metrics: Sequence[str] = (),
    unreadable: str = "stop",
    batch_size: int = 8,
    pictures: str | os.PathLike | OutputFolder | None = None,
    progress: bool = True,
) -> Evaluation:
    """Scores an open model on domains, each image at its own size.

    Args:
        segmenter (`Segmenter`):
            The model; its classes are those of the domains, in the same order.
        validation (`Sequence[Domain]`, *optional*, defaults to `()`):
            Domains that a checkpoint may be chosen on.
        unseen (`Sequence[Domain]`, *optional*, defaults to `()`):
            Domains that nothing was chosen on.
        name (`str`, *optional*, defaults to `"model"`):
            What tables call the model.
        metrics (`Sequence[str]`, *optional*, defaults to `()`):
            Names of further metrics, see [`~deft_hf.scoring.metrics`].
        unreadable (`str`, *optional*, defaults to `"stop"`):
            `"skip"` leaves out images that cannot be read, see [`Reader`].
        batch_size (`int`, *optional*, defaults to `8`):
            How many images of one size go through the model together at most; large ones are fewer, see
            [`~deft_hf.runs.batches.segmented`].
        pictures (`str`, `os.PathLike` or `OutputFolder`, *optional*):
            Folder for the classes of every image as PNG, in which no file is replaced; none are written without it.
        progress (`bool`, *optional*, defaults to `True`):
            Show a progress bar on a terminal.

    Returns:
        `Evaluation`: the scores.

    Raises:
        UserError: There is no domain, an image cannot be read, or an id leads out of `pictures`.

    Example:

    ```python
    from deft_hf import Domain, LabelSpace
    from deft_hf.runs.evaluate import score
    from deft_hf.runs.segmenter import Segmenter

    coast = Domain.from_folder("data/coast", LabelSpace(("land", "water")))
    print(score(Segmenter.open("outputs/shore"), unseen=[coast]).table())
    ```
    """
    domains = [*validation, *unseen]
    if not domains:
        raise UserError("domains: found none, expected at least one to score")
    names = [domain.name for domain in domains]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"domains: found several of the name {repeated[0]}, expected one score a name; rename them")
    if pictures is not None:
        _check_ids(domains)
    if problems := unknown(metrics):
        raise UserError("\n".join(problems))
    reader, labels = Reader(domains, unreadable), domains[0].labels
    chosen = further(metrics)
    scores: dict[str, Scores] = {}
    counts: dict[str, Counts] = {}
    found: dict[str, dict[str, Any]] = {}
    examples: list[PanelRow] = []
    for which, domain in enumerate(domains):
        shown = segmenter.at(domain.name)
        matrix, tally = ConfusionMatrix(labels.num_labels), Tally(labels.num_labels, chosen)
        read: list[str] = []
        pairs = _readable(reader, which, domain, progress)
        for (index, truth), image, ids, logits in segmented(shown, pairs, batch_size, tally.of_probabilities):
            read.append(domain.ids[index])
            single, seen = ConfusionMatrix(labels.num_labels), (torch.from_numpy(ids), torch.from_numpy(truth))
            single.update(*seen)
            matrix.merge(single)
            probabilities = None if logits is None else probabilities_of(segmenter.family, logits)
            tally.add(single.counts, *seen, probabilities)
            if which < MOST_PANELS and index == len(domain) // 2:
                examples.append((domain.name, of_a_panel(image), truth, {"prediction": ids}))
            if pictures is not None:
                place = pictures.path if isinstance(pictures, OutputFolder) else Path(pictures)
                with writing(place, lambda: "Make room and start again."):
                    segmenter.save(pictures, domain.ids[index], image, ids, place=domain.name, in_place=True)
            del image, truth, ids, seen, logits, probabilities  # they may be large, and the next ones come first
        counts[domain.name] = tally.by_image()
        found[domain.name] = extremes(counts[domain.name][REGIONS], read)
        scores[domain.name] = replace(matrix.compute(labels.names), more=tally.more())
    return Evaluation(
        name=name,
        scores=scores,
        validation=[domain.name for domain in validation],
        unseen=[domain.name for domain in unseen],
        labels=labels,
        unreadable=reader.found(),
        examples=examples,
        intervals=intervals(counts, [domain.name for domain in unseen], chosen),
        extremes=found,
    )


def _readable(
    reader: Reader, which: int, domain: Domain, progress: bool
) -> Iterator[tuple[tuple[int, np.ndarray], Image.Image, None]]:
    """Index, truth and image of a domain's pairs, without those that are left out."""
    for index in tqdm(range(len(domain)), desc=domain.name, unit="image", disable=None if progress else True):
        image, truth, is_it = reader.load(which, index)
        if is_it:
            yield (index, truth), image, None
        del image, truth  # they may be large, and the next ones come first


def recipe_segmenter(
    model: str,
    recipe: Recipe,
    revision: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Segmenter:
    """Opens a model that sees images, and colours classes, as a recipe says.

    Raises:
        UserError: The model cannot be opened, or its classes are not the recipe's.
    """
    data, labels = recipe.data, recipe.data.label_space()
    segmenter = Segmenter.open(model, revision, device, None, data.window, data.stride, trust_remote_code)
    names = list(labels.names)
    nameless = all(name in (f"LABEL_{index}", str(index)) for index, name in enumerate(segmenter.names))
    if len(segmenter.names) != len(names) or not (nameless or segmenter.names == names):
        raise UserError(
            f"{model} has the classes {_some(segmenter.names)}, {recipe.path} has {_some(names)}: expected the same "
            "in the same order. Map the recipe's masks to the model's classes under data.labels."
        )
    processor = segmentation_processor(segmenter.processor, data.shown_size())
    views = Views(tuple(data.test_scales), data.test_flip)
    palette = labels.colorize(np.arange(len(names)))
    sizes = data.shown_sizes()
    return replace(segmenter, processor=processor, palette=palette, size=None, views=views, sizes=sizes)


def _submitted(server: str, domains: Domains, pictures: bool) -> list[Domain]:
    """The domains of a benchmark, once it is known that its server takes what will be predicted."""
    benchmark = server_of(server)
    if not pictures:
        raise UserError(f"server: the archive for {server} is made of the pictures; write them too")
    id_table(benchmark, domains.labels.names)
    found = [domain for domain in domains.evaluated if all(map(benchmark.file_name, domain.ids))]
    for domain in found:
        check_names(benchmark, domain.ids)
        if isinstance(domain, ResizedDomain):
            key = "halve" if domain.change is halve else "crop_or_pad"
            raise UserError(
                f"{domain.name}: found {key}, so that predictions are of another size than the images, but "
                f"{benchmark.title}'s server takes them at the images' own; remove {key}, or write no archive for a "
                "server. An eval_size may stay: what is predicted at it is resized back"
            )
    if not found:
        check_names(benchmark, domains.evaluated[0].ids)
    return found


def _check_ids(domains: Sequence[Domain]) -> None:
    """Ids come with the data, which may be of others."""
    for domain in domains:
        if problem := name_problem(domain.name):
            raise UserError(
                f"{domain.name}: the name of the domain {problem}, and pictures are written to a folder of "
                "that name; give it another name."
            )
        for key in domain.ids:
            if problem := name_problem(key) or name_problem(f"{key}.png"):
                raise UserError(
                    f"{domain.name}: the id {key[:200]!r} {problem}, so that no picture can be named after it; "
                    "nothing was written. Correct the ids of the data set, or write no pictures."
                )


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
