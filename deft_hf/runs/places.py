"""What models make of places without labels: shares of classes, where they disagree, how well they probably do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.data.corruptions import CORRUPTIONS, corrupted
from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.data.places import Place
from deft_hf.data.roles import Domains
from deft_hf.runs.segmenter import Segmenter
from deft_hf.scoring.confusion import ConfusionMatrix
from deft_hf.scoring.estimates import ESTIMATORS, Calibration, Estimate, LabelledCounts
from deft_hf.scoring.place_report import (
    Example,
    class_estimate_table,
    estimate_table,
    known_table,
    save_place_panels,
    share_table,
)
from deft_hf.scoring.report import save_json
from deft_hf.utils.errors import UnreadableFile, UserError
from deft_hf.utils.files import PLACES

_CALIBRATED_ON = 24  # images of validation, of which every corrupted copy is made
_COMPARED_ON = 60  # images of each unseen domain with labels
_SEVERITIES = (1, 3, 5)
_MOST_ROWS = 8


Known = dict[str, dict[str, tuple[Estimate, float]]]
"""By domain with labels and model: the estimate, made without the labels, and the mean IoU on the same images."""


@dataclass(frozen=True)
class Findings:
    """What models make of one place.

    Attributes:
        place (`str`):
            Its name.
        ids (`list[str]`):
            Ids of its images.
        paths (`list[str | None]`):
            The file of each image; none where it is no file of its own.
        scores (`list[float]`):
            By image, how much there is to learn from its labels, in [0, 1]: with several models the share of the
            pixels on which they do not all agree, with one the mean of 1 - confidence.
        shares (`dict[str, list[float]]`):
            By model, the share of the pixels that it predicts as each class.
        source (`list[float]`, *optional*):
            The share of each class in the truth of source validation, for comparison.
        estimates (`dict[str, dict[str, Estimate]]`):
            By model and estimator; empty without validation images to calibrate on.
        known (`Known`):
            How the default estimates come out on unseen domains with labels, which say how far to trust them.
        examples (`list[Example]`):
            Images from much disagreement to little.
        unreadable (`list[str]`):
            What is wrong with images that were left out.
    """

    place: str
    ids: list[str]
    paths: list[str | None]
    scores: list[float]
    shares: dict[str, list[float]]
    source: list[float] | None
    estimates: dict[str, dict[str, Estimate]]
    known: Known
    examples: list[Example]
    unreadable: list[str]

    def tables(self, names: Sequence[str]) -> list[str]:
        """Estimates, where there are some, and shares, as Markdown tables.

        Args:
            names (`Sequence[str]`):
                Names of the classes.
        """
        parts = [share_table(self.shares, self.source, names)]
        if self.estimates:
            parts = [estimate_table(self.estimates), class_estimate_table(self.estimates, names), *parts]
        return [*parts, known_table(self.known)] if self.known else parts

    @property
    def order(self) -> list[int]:
        """Positions of the images, those first whose labels would tell most."""
        return sorted(range(len(self.ids)), key=lambda index: (-self.scores[index], self.ids[index]))

    def to_dict(self) -> dict[str, Any]:
        """What a JSON file holds; without the files of the images."""
        return {
            "images": len(self.ids),
            "shares": self.shares,
            "source_shares": self.source,
            "estimates": {
                model: {name: estimate.to_dict() for name, estimate in found.items()}
                for model, found in self.estimates.items()
            },
            "estimates_where_labels_are": {
                domain: {
                    model: {"estimate": estimate.to_dict(), "mean_iou": truth}
                    for model, (estimate, truth) in by_model.items()
                }
                for domain, by_model in self.known.items()
            },
            "disagreement": {self.ids[index]: self.scores[index] for index in self.order},
            "unreadable": self.unreadable,
        }


def look_at(
    models: Mapping[str, Segmenter],
    domains: Domains,
    progress: bool = True,
) -> list[Findings]:
    """Predicts every image of the places without labels with every model, and estimates how well each does there.

    Estimates are calibrated on the validation images and on corrupted copies of them, see
    [`~deft_hf.scoring.estimates.Calibration`]; nothing of a place enters into them. On unseen domains with labels the
    same estimates are made and compared with the truth. Several models are members for
    one another in the estimate by agreement.

    Args:
        models (`Mapping[str, Segmenter]`):
            By name, models of the same classes.
        domains (`Domains`):
            The data: `validation`, images of the source that no model was trained on, without which there are no
            estimates; `unseen`; and `places`.
        progress (`bool`, *optional*, defaults to `True`):
            Show progress bars on a terminal.

    Returns:
        `list[Findings]`: the findings of each place.

    Raises:
        UserError: No image of a place can be read.
    """
    if not domains.places:
        return []
    calibrations: dict[str, Calibration] = {}
    source: list[float] | None = None
    known: Known = {}
    if domains.validation:
        calibrations, source = _calibrate(models, domains.validation, progress)
        known = {domain.name: _compare(models, calibrations, domain, progress) for domain in domains.unseen}
    return [_look(models, calibrations, source, known, place, progress) for place in domains.places]


def _calibrate(
    models: Mapping[str, Segmenter], validation: Sequence[Domain], progress: bool
) -> tuple[dict[str, Calibration], list[float]]:
    """By model, its calibration; and the share of each class in the truth."""
    clean = [_thinned(domain, _CALIBRATED_ON // len(validation) or 1) for domain in validation]
    seen = [_at(models, domain.name) for domain in validation]
    copies = [
        (kind, [corrupted(domain, kind, severity) for domain in clean])
        for kind in CORRUPTIONS
        for severity in _SEVERITIES
    ]
    labels = len(next(iter(models.values())).names)
    source = {name: LabelledCounts(labels) for name in models}
    counts: list[tuple[str, dict[str, LabelledCounts]]] = []
    for kind, domains in tqdm([("", clean), *copies], desc="calibrating", disable=None if progress else True):
        counted = source if not kind else {name: LabelledCounts(labels) for name in models}
        for domain, shown in zip(domains, seen, strict=True):
            for index in range(len(domain)):
                try:
                    image, truth = domain.load(index)
                except UnreadableFile:
                    continue  # the scores say which
                if (truth != IGNORE_INDEX).any():
                    for name, probabilities, members in _predictions(shown, image):
                        counted[name].update(probabilities, torch.from_numpy(truth), members)
        if kind:
            counts.append((kind, counted))
    pixels = next(iter(source.values())).truth.counts.sum(1)
    calibrations = {
        name: Calibration(source[name], [(kind, counted[name]) for kind, counted in counts]) for name in models
    }
    return calibrations, (pixels / pixels.sum()).tolist()


def _compare(
    models: Mapping[str, Segmenter], calibrations: Mapping[str, Calibration], domain: Domain, progress: bool
) -> dict[str, tuple[Estimate, float]]:
    """By model, the estimate for a domain with labels, and its score on the same images."""
    domain, models = _thinned(domain, _COMPARED_ON), _at(models, domain.name)
    counts = {name: calibration.counts() for name, calibration in calibrations.items()}
    truths = {name: ConfusionMatrix(len(model.names)) for name, model in models.items()}
    for index in tqdm(range(len(domain)), desc=domain.name, unit="image", disable=None if progress else True):
        try:
            image, truth = domain.load(index)
        except UnreadableFile:
            continue
        for name, probabilities, members in _predictions(models, image):
            counts[name].update(probabilities, members)
            truths[name].update(probabilities.argmax(0), torch.from_numpy(truth))
    scored = {name: matrix.compute().mean_iou for name, matrix in truths.items()}
    return {name: (calibrations[name].estimate(counts[name]), scored[name]) for name in models if counts[name].images}


def _look(
    models: Mapping[str, Segmenter],
    calibrations: Mapping[str, Calibration],
    source: list[float] | None,
    known: Known,
    place: Place,
    progress: bool,
) -> Findings:
    counts = {name: calibration.counts() for name, calibration in calibrations.items()}
    pixels = {name: np.zeros(len(model.names)) for name, model in models.items()}
    read: list[int] = []
    scores: list[float] = []
    unreadable: list[str] = []
    for index in tqdm(range(len(place)), desc=place.name, unit="image", disable=None if progress else True):
        try:
            image = place.load(index)
        except UnreadableFile as error:
            unreadable.append(str(error))
            continue
        classes, doubt = [], 0.0
        for name, probabilities, members in _predictions(models, image):
            if name in counts:
                counts[name].update(probabilities, members)
            confidence, ids = probabilities.max(0)
            classes.append(ids)
            doubt = float(1 - confidence.mean())
            pixels[name] += np.bincount(ids.flatten().numpy(), minlength=len(pixels[name]))
        read.append(index)
        differing = [ids != classes[0] for ids in classes[1:]]
        scores.append(float(torch.stack(differing).any(0).float().mean()) if differing else doubt)
    if not read:
        raise UserError(f"{place.name}: none of its {len(place)} images can be read: {unreadable[0]}")
    found = Findings(
        place=place.name,
        ids=[place.ids[index] for index in read],
        paths=[place.path(index) for index in read],
        scores=scores,
        shares={name: (count / count.sum()).tolist() for name, count in pixels.items()},
        source=source,
        known=known,
        estimates={
            name: {method: calibrations[name].estimate(counts[name], method) for method in _methods(models)}
            for name in calibrations
        },
        examples=[],
        unreadable=unreadable,
    )
    for position in _spread(found.order):
        image = place.load(read[position])
        predicted = {name: model.classes(image) for name, model in models.items()}
        found.examples.append((found.ids[position], np.asarray(image), predicted))
    return found


def _methods(models: Mapping[str, Segmenter]) -> list[str]:
    known = [*ESTIMATORS, "source"]
    return known if len(models) > 1 else [method for method in known if method != "agreement"]


def _predictions(models: Mapping[str, Segmenter], image: Image.Image) -> Iterator[tuple[str, Tensor, list[Tensor]]]:
    """By model, probabilities (C, H, W) and the class ids (H, W) of the others, on the CPU."""
    found = {name: model.probabilities(image).cpu() for name, model in models.items()}
    classes = {name: probabilities.argmax(0) for name, probabilities in found.items()}
    for name, probabilities in found.items():
        yield name, probabilities, [other for member, other in classes.items() if member != name]


def _at(models: Mapping[str, Segmenter], domain: str) -> dict[str, Segmenter]:
    return {name: model.at(domain) for name, model in models.items()}


def _thinned(domain: Domain, images: int) -> Domain:
    if images >= len(domain):
        return domain
    return domain.select([index * len(domain) // images for index in range(images)])


def _spread(order: Sequence[int]) -> list[int]:
    """The first half of the rows from the top, the others evenly from what is left, down to the last."""
    if len(order) <= _MOST_ROWS:
        return list(order)
    first = _MOST_ROWS // 2
    rest = order[first:]
    steps = _MOST_ROWS - first
    return [*order[:first], *(rest[(step + 1) * len(rest) // steps - 1] for step in range(steps))]


def write_findings(file: Callable[[str], Path], found: Sequence[Findings], labels: LabelSpace) -> None:
    """Writes what was found: JSON, a picture of each place, and lists of what to label first.

    Args:
        file (`Callable[[str], Path]`):
            The place for a file of a name relative to the output folder.
        found (`Sequence[Findings]`):
            The findings.
        labels (`LabelSpace`):
            Names and colours of the classes.
    """
    save_json(_made(file(PLACES)), {findings.place: findings.to_dict() for findings in found})
    for findings in found:
        scores = dict(zip(findings.ids, findings.scores, strict=True))
        save_place_panels(file(panels_file(findings.place)), findings.place, findings.examples, scores, labels)
        files = [(findings.paths[index], findings.ids[index], findings.scores[index]) for index in findings.order]
        listed = "".join(f"{path or key}\n" for path, key, _ in files)
        _made(file(f"to_label/{findings.place}.txt")).write_text(listed, "utf-8")
        tasks = [
            {"data": {"image": f"/data/local-files/?d={quote(path.lstrip('/'))}"}, "meta": {"id": key, "score": score}}
            for path, key, score in files
            if path is not None
        ]
        if tasks:
            save_json(file(f"to_label/{findings.place}.label_studio.json"), tasks)


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def panels_file(place: str) -> str:
    """The picture of a place, relative to the output folder."""
    return f"figures/places/{place}.png"
