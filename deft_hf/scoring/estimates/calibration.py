"""From sums to an estimate with an interval: what corrupted copies of source validation say about each estimator."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, special

from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.scoring.estimates.counts import Evidence, LabelledCounts, PlaceCounts
from deft_hf.scoring.estimates.estimators import ESTIMATORS, Parameters
from deft_hf.utils.errors import UserError

DEFAULT_METHOD = "temperature"
LEVEL = 0.9
MOST_ERROR = 0.1  # of the mean IoU, median over the copies nearby; above it an estimate is not trusted

_PROBIT = {"agreement"}  # lines are straight on probit axes (Baek et al. 2022, section 3)
_LEAST = 1e-3  # IoU, on probit axes
_NEARBY, _FEWEST_COPIES = 1 / 3, 10  # share of the copies whose errors make the interval, and how many at least
_ONE_CLASS = 0.999
_FOUND = 0.05  # IoU on source validation from which on a class counts as learned
_FEWEST_IMAGES = 3

Labelled = Iterable[tuple]  # (probabilities (K, H, W), labels (H, W)), or with a list of members' class ids as third
Unlabelled = Iterable[Any]  # probabilities (K, H, W), or (probabilities, members' class ids)


@dataclass(frozen=True)
class Estimate:
    """What a place without labels probably scores. `str(estimate)` is what a page shows: no number without trust.

    Attributes:
        method (`str`):
            The estimator, a key of `ESTIMATORS`, or `"source"` for the naive guess.
        mean_iou (`float`):
            Estimated mean IoU, in [0, 1].
        interval (`tuple[float, float]`):
            Interval that should hold the mean IoU with probability `level`.
        per_class (`list[float]`):
            Estimated IoU per class; NaN for a class that is neither predicted nor expected there.
        class_intervals (`list[tuple[float, float]]`):
            Their intervals.
        level (`float`):
            Level of the intervals.
        images (`int`):
            Number of images of the place.
        shift (`float`):
            Mean confidence on the source minus mean confidence at the place.
        trusted (`bool`):
            Whether the numbers mean anything, as far as corrupted copies can tell.
        reason (`str`):
            Why they do not; empty otherwise.
    """

    method: str
    mean_iou: float
    interval: tuple[float, float]
    per_class: list[float]
    class_intervals: list[tuple[float, float]]
    level: float
    images: int
    shift: float
    trusted: bool
    reason: str

    def __str__(self) -> str:
        if not self.trusted:
            return f"not estimated: {self.reason}"
        low, high = self.interval
        return f"{100 * self.mean_iou:.1f} [{100 * low:.1f}, {100 * high:.1f}]"

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return asdict(self)


class Calibration:
    """Estimators calibrated on source validation and on corrupted copies of it.

    1. [`Parameters`] (temperatures, thresholds, differences) are fitted to the source.
    2. Each estimator's raw estimate e of the IoU of class c is put on a line through the source, where the truth t is
       known: `t_c(place) = t_c(source) + w (e_c(place) - e_c(source))`. The slope w is fitted by least squares to the
       mean IoU of the copies: it says by how much an overconfident model understates what it loses (Guillory et al.,
       ICCV 2021, https://arxiv.org/abs/2107.03315, regress the loss of accuracy on a difference of confidences over
       known shifts in this way; Baek et al., NeurIPS 2022, https://arxiv.org/abs/2206.13089, do so with agreement).
    3. **Interval.** The errors on the copies, each with a slope fitted without its own kind of corruption, are what
       the estimate may be off by. The third of the copies whose shift (loss of mean confidence) is nearest to the
       place's are used, at least ten; their errors are subtracted from every bootstrap replicate of the estimate, and
       the interval lies between quantiles of all these differences, widened from n to n + 1 as in conformal prediction
       (Vovk et al. 2005; cross-conformal: https://doi.org/10.1007/s10472-013-9368-4). It covers as often as it says
       where the place is to the source as a corrupted copy is, an assumption that real shifts need not keep.

    Args:
        source (`LabelledCounts`):
            Source validation.
        copies (`Sequence[tuple[str, LabelledCounts]]`):
            Corrupted copies of it with their kinds; a kind can come several times, in several severities.

    Raises:
        UserError: If the source has no labelled pixel.

    Example:

    ```python
    from deft_hf.scoring.estimates import Calibration

    calibration = Calibration.fit(19, source=validation, copies=[("fog", foggy), ("snow", snowy)])
    print(calibration.estimate(place))
    ```
    """

    def __init__(self, source: LabelledCounts, copies: Sequence[tuple[str, LabelledCounts]] = ()):
        if not source.truth.counts.sum():
            raise UserError("source: found no labelled pixel, expected validation images with labels")
        self.num_labels = source.num_labels
        self.parameters = Parameters.fit(source)
        self.kinds = [kind for kind, _ in copies]
        self.scores = source.truth.compute()
        domains = [source, *(counts for _, counts in copies)]
        evidence = [counts.evidence(self.parameters.temperatures, self.parameters.thresholds) for counts in domains]
        truths = [counts.truth.compute() for counts in domains]
        self.truth = torch.tensor([scores.iou for scores in truths], dtype=torch.float64)  # source first
        self.raw = {
            method: torch.stack([estimator(found, self.parameters) for found in evidence])
            for method, estimator in ESTIMATORS.items()
        }
        self.raw["source"] = self.truth[:1].expand_as(self.truth)
        self.confidence = evidence[0].confidence
        self.shifts = torch.tensor([float(self.confidence - found.confidence) for found in evidence[1:]])

    @classmethod
    def fit(
        cls,
        num_labels: int,
        source: Labelled,
        copies: Iterable[tuple[str, Labelled]] = (),
        ignore_index: int = IGNORE_INDEX,
    ) -> Calibration:
        """Calibrates on streams, each read once; see [`LabelledCounts.update`] for what they yield.

        Args:
            num_labels (`int`):
                Number of classes.
            source (`Iterable`):
                Source validation: probabilities, labels and, optionally, class ids of other members.
            copies (`Iterable`):
                Kinds of corruption and their streams.
            ignore_index (`int`, *optional*, defaults to `255`):
                Label of unlabelled pixels.
        """

        def counted(stream: Labelled) -> LabelledCounts:
            counts = LabelledCounts(num_labels, ignore_index)
            for sample in stream:
                counts.update(*sample)
            return counts

        return cls(counted(source), [(kind, counted(stream)) for kind, stream in copies])

    def counts(self, seed: int = 0) -> PlaceCounts:
        """Empty counts for a place, to be updated image by image."""
        return PlaceCounts(self.parameters.temperatures, self.parameters.thresholds, seed)

    def estimate(
        self, place: PlaceCounts | Unlabelled, method: str = DEFAULT_METHOD, level: float = LEVEL
    ) -> Estimate:
        """Estimates the scores of a place.

        Args:
            place (`PlaceCounts` or `Iterable`):
                Counts from [`Calibration.counts`], or a stream of probabilities `(K, H, W)`, one an image, or of pairs
                of probabilities and members' class ids.
            method (`str`, *optional*, defaults to `"temperature"`):
                A key of `ESTIMATORS`, or `"source"`: the score of source validation.
            level (`float`, *optional*, defaults to `0.9`):
                Level of the intervals.

        Raises:
            UserError: If there is no such method, or no image.
        """
        if method not in self.raw:
            raise UserError(f"method: found {method!r}, expected one of {', '.join(self.raw)}")
        if not isinstance(place, PlaceCounts):
            stream, place = place, self.counts()
            for sample in stream:
                place.update(*sample) if isinstance(sample, tuple | list) else place.update(sample)
        if not place.images:
            raise UserError("place: found no image, expected at least one")
        evidence = place.evidence()
        raw = self.raw[method][:1] if method == "source" else ESTIMATORS[method](evidence, self.parameters)
        per_class = self._on_line(method, raw, self._slope(method))
        mean = per_class.nanmean(-1)
        shift = float(self.confidence - evidence.confidence[0])
        errors = self.errors(method)[self._nearby(shift)]
        reason = self._doubt(evidence, method, shift, errors, float(mean[0]))
        return Estimate(
            method=method,
            mean_iou=float(mean[0]),
            interval=_interval(mean, errors[:, -1], level),
            per_class=per_class[0].tolist(),
            class_intervals=[_interval(per_class[:, k], errors[:, k], level) for k in range(self.num_labels)],
            level=level,
            images=place.images,
            shift=shift,
            trusted=not reason,
            reason=reason,
        )

    def errors(self, method: str) -> Tensor:
        """Estimate minus truth on every copy, with a slope that did not see its kind: IoU per class, then their mean.

        Returns:
            `Tensor`: float64, shape `(copies, K + 1)`; NaN where a class is absent.
        """
        errors = torch.full((len(self.kinds), self.num_labels + 1), torch.nan, dtype=torch.float64)
        for kind in dict.fromkeys(self.kinds):
            own = torch.tensor([found == kind for found in self.kinds])
            found = self._on_line(method, self.raw[method][1:][own], self._slope(method, ~own))
            truth = self.truth[1:][own]
            errors[own, :-1] = found - truth
            errors[own, -1] = found.nanmean(-1) - truth.nanmean(-1)
        return errors

    def _slope(self, method: str, copies: Tensor | None = None) -> float:
        """Least squares through the source, over all copies or some."""
        raw, truth = self._linked(method, self.raw[method]), self._linked(method, self.truth)
        lost, estimated = ((values - values[0])[1:].nanmean(-1) for values in (truth, raw))
        known = lost.isfinite() & estimated.isfinite()
        if copies is not None:
            known &= copies
        lost, estimated = lost[known], estimated[known]
        # Estimates that hardly move over the copies, by a hundredth or less, leave the slope at 1.
        prior = 1e-4 * max(len(lost), 1)
        return max(float((estimated @ lost + prior) / (estimated @ estimated + prior)), 0.0)

    def _on_line(self, method: str, raw: Tensor, slope: float) -> Tensor:
        linked = self._linked(method, raw)
        start, truth = self._linked(method, self.raw[method][0]), self._linked(method, self.truth[0])
        found = truth + slope * (linked - start)
        found = torch.where((truth + start).isnan(), linked, found)  # a class that the source lacks
        return special.ndtr(found) if method in _PROBIT else found.clamp(0, 1)

    def _linked(self, method: str, iou: Tensor) -> Tensor:
        return special.ndtri(iou.clamp(_LEAST, 1 - _LEAST)) if method in _PROBIT else iou

    def _nearby(self, shift: float) -> Tensor:
        count = max(math.ceil(len(self.kinds) * _NEARBY), _FEWEST_COPIES)
        return (self.shifts - shift).abs().argsort()[:count]

    def _doubt(self, evidence: Evidence, method: str, shift: float, errors: Tensor, mean: float) -> str:
        """Why the estimate cannot be trusted; empty where nothing speaks against it."""
        if int((self.truth[0] >= _FOUND).sum()) < 2:
            return f"on source validation it finds one class alone (an IoU of {100 * _FOUND:.0f} % or more)"
        shares = evidence.predicted[0] / evidence.predicted[0].sum()
        if float(shares.max()) > _ONE_CLASS:
            return f"{100 * float(shares.max()):.1f} % of the pixels are predicted as one class"
        if int(evidence.images[0]) < _FEWEST_IMAGES:
            return f"{int(evidence.images[0])} images are too few to tell how they differ; {_FEWEST_IMAGES} are needed"
        if not math.isfinite(mean):
            return "independently trained members are needed" if method == "agreement" else "no class is left to score"
        if len(self.kinds) < _FEWEST_COPIES:
            return f"calibrated on {len(self.kinds)} corrupted copies; {_FEWEST_COPIES} are needed for an interval"
        furthest = float(self.shifts.max())
        if shift > furthest:
            return (
                f"mean confidence is {100 * shift:.1f} points below the source's, on the furthest corrupted copy "
                f"{100 * furthest:.1f}"
            )
        typical = float(errors[:, -1].abs().nanmedian())
        if typical > MOST_ERROR:
            return f"on corrupted copies as far from the source it is off by {100 * typical:.1f} points (median)"
        return ""


def _interval(estimates: Tensor, errors: Tensor, level: float) -> tuple[float, float]:
    """Between quantiles of every replicate minus every error, in [0, 1]; the estimate itself, the first, inside."""
    first = float(estimates[0])
    estimates, errors = estimates[estimates.isfinite()], errors[errors.isfinite()]
    if not math.isfinite(first) or not len(errors):
        return math.nan, math.nan
    upper = min(1.0, (1 + level) / 2 * (len(errors) + 1) / len(errors))
    low, high = (estimates[:, None] - errors).flatten().quantile(torch.tensor([1 - upper, upper]).double()).tolist()
    return max(min(low, first), 0.0), min(max(high, first), 1.0)
