"""Torch data sets over domains: what is shown in which epoch, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Subset

from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.data.contents import fingerprint
from deft_hf.data.domains import Domain
from deft_hf.data.samplers import EveryImage, Sampler, apportion
from deft_hf.data.transforms import EvalTransform
from deft_hf.data.unreadable import Reader
from deft_hf.utils.errors import UserError


class TrainingSet(Dataset):
    """Training items out of one or several domains.

    Item i of epoch e is a pure function of (seed, e, i), whichever process makes it and in whichever order: the same
    on any number of workers or ranks, and after a resumed run. Who loops without a `DeFTTrainer` calls `set_epoch`
    before each epoch; around wrappers, `deft_hf.data.sampling.set_epoch`.

    An epoch takes its share of items from each domain, mixed at random, and runs through a domain's images in a fresh
    random order, so that none repeats before all were shown. Without weights an epoch therefore holds every image of
    every domain exactly once.

    Args:
        domains (`Sequence[Domain]`):
            At least one, all with the same classes.
        transform (`Callable[[Image.Image, np.ndarray, np.random.Generator], dict[str, torch.Tensor]]`):
            Called with (image, mask, rng) as a `TrainTransform` is.
        weights (`Sequence[float]`, *optional*):
            Share of the items of each domain, positive, of any sum. An epoch keeps to them within one item, and
            exactly on average over epochs. By default the domains' sizes.
        seed (`int`, *optional*, defaults to `0`):
            Not negative.
        length (`int`, *optional*):
            Items per epoch; the number of images of all domains by default.
        unreadable (`str`, *optional*, defaults to `"stop"`):
            `stop` or `skip`, see `Reader`.
        samplers (`Sequence[Sampler]`, *optional*):
            For each domain, what draws its images: a [`~deft_hf.data.samplers.ClassUniform`], for one. Where it aims
            at something, `transform` is called with `aim=` too. By default [`~deft_hf.data.samplers.EveryImage`].

    Raises:
        UserError: No domain, an empty one, unequal classes, or weights that do not fit.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        transform: Callable[..., dict[str, torch.Tensor]],
        weights: Sequence[float] | None = None,
        seed: int = 0,
        length: int | None = None,
        unreadable: str = "stop",
        samplers: Sequence[Sampler] | None = None,
    ) -> None:
        self.domains = list(domains)
        self.transform = transform
        self.seed = seed
        sizes = [len(domain) for domain in self.domains]
        _check(self.domains, sizes, weights)
        self.reader = Reader(self.domains, unreadable)
        self.samplers = [EveryImage(size) for size in sizes] if samplers is None else list(samplers)
        if len(self.samplers) != len(sizes):
            raise UserError(f"samplers: found {len(self.samplers)}, expected one for each of the {len(sizes)} domains")
        self.weights = np.asarray(sizes if weights is None else weights, np.float64)
        self.length = sum(sizes) if length is None else length
        # Persistent workers hold a copy of this object from the first epoch on, but share the tensor's memory.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._schedule: tuple[int, np.ndarray, np.ndarray, np.ndarray] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Turns to an epoch, in living workers too; to be called before the epoch's iterator is made."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < self.length:
            raise IndexError(f"item {index} of {self.length}")
        epoch = int(self._epoch)
        if self._schedule is None or self._schedule[0] != epoch:
            self._schedule = (epoch, *self._draw_schedule(epoch))
        _, domains, images, aims = self._schedule
        image, mask, is_it = self.reader.load(int(domains[index]), int(images[index]))
        aimed = {} if aims[index] is None or not is_it else {"aim": aims[index]}
        return self.transform(image, mask, np.random.default_rng((self.seed, epoch, index)), **aimed)

    def _draw_schedule(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Domain, image and aim of each item of an epoch."""
        # `length` is no item's index, so no item's augmentation repeats this stream.
        rng = np.random.default_rng((self.seed, epoch, self.length))
        counts = apportion(self.weights, self.length, rng)
        domains = rng.permutation(np.repeat(np.arange(len(counts)), counts))
        images = np.empty(self.length, np.int64)
        aims = np.empty(self.length, object)
        for index, (sampler, count) in enumerate(zip(self.samplers, counts, strict=True)):
            images[domains == index], aims[domains == index] = sampler.draw(int(count), rng)
        return domains, images, aims


class EvaluationSet(Dataset):
    """Every image of a domain once, in its order.

    Args:
        domain (`Domain`):
            What is evaluated on; kept as `.domain`.
        transform (`EvalTransform`):
            From (image, mask) to `pixel_values` and `labels`.
        unreadable (`str`, *optional*, defaults to `"stop"`):
            `stop`, or `skip`: the place of what cannot be read holds another image without a label.
    """

    def __init__(self, domain: Domain, transform: EvalTransform, unreadable: str = "stop") -> None:
        self.domain = domain
        self.reader = Reader([domain], unreadable)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.domain)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        image, mask, is_it = self.reader.load(0, index)
        return self.transform(image, mask if is_it else np.full_like(mask, IGNORE_INDEX))


def set_epoch(dataset: Any, epoch: int) -> None:
    """Turns a data set to an epoch, and whatever it wraps: `Subset`, `ConcatDataset`, or a wrapper of the user's own.

    Every object below `dataset` that has a `set_epoch` gets the call; a `TrainingSet` that nobody turns would show
    the crops of its first epoch for ever. In living workers too, see `TrainingSet.set_epoch`.

    Args:
        dataset (`Any`):
            What a data loader reads.
        epoch (`int`):
            The epoch.
    """
    for each in _that_know_epochs(dataset):
        each.set_epoch(epoch)


def training_data(dataset: Any) -> str | None:
    """What a run trains on, in few words that differ for other data, as far as can be told.

    Args:
        dataset (`Any`):
            What a data loader reads: a `TrainingSet`, wrapped or not, says what it holds; others how many items.

    Returns:
        `str` or `None`: `None` for a stream, of which nothing is known.
    """
    items = f"{len(dataset)} items" if hasattr(dataset, "__len__") else None
    domains = [domain for each in training_sets(dataset) for domain in each.domains]
    return f"{items or 'a stream'} ({fingerprint(domains)[:12]})" if domains else items


def training_sets(dataset: Any) -> list[TrainingSet]:
    """Every `TrainingSet` that a data set is or wraps."""
    return [each for each in _that_know_epochs(dataset) if isinstance(each, TrainingSet)]


def _that_know_epochs(dataset: Any) -> Iterator[Any]:
    """What has a `set_epoch` in a data set and whatever it wraps."""
    waiting, seen = [dataset], set()
    while waiting:
        current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if callable(getattr(current, "set_epoch", None)):
            yield current
        else:
            waiting += _wrapped(current)


def _wrapped(wrapper: Any) -> list[Any]:
    """What a data set holds that may be a data set, in its attributes and in lists and mappings there."""
    found = []
    for value in getattr(wrapper, "__dict__", {}).values():
        if isinstance(value, dict):
            value = list(value.values())
        # Of a list as long as a data set, its indices for one, the first entry says that it holds no data sets.
        parts = value if isinstance(value, list | tuple) and value and _is_dataset(value[0]) else [value]
        found += [part for part in parts if _is_dataset(part)]
    return found


def _is_dataset(value: Any) -> bool:
    readable = hasattr(value, "__getitem__") or hasattr(value, "__iter__")
    return readable and hasattr(value, "__dict__") and not isinstance(value, type | torch.Tensor | torch.nn.Module)


def share(dataset: Dataset, rank: int, ranks: int) -> Dataset:
    """Every `ranks`-th item of a data set or a stream, from the `rank`-th on, so that each is some rank's once.

    A stream has to be the same on every rank; each reads all of it.
    """
    if ranks == 1:
        return dataset
    if isinstance(dataset, IterableDataset):
        return _StreamShare(dataset, rank, ranks)
    items = range(rank, len(dataset), ranks)  # type: ignore[arg-type]  # torch declares no length of a data set
    return Subset(dataset, items)


class _StreamShare(IterableDataset):
    def __init__(self, stream: IterableDataset, rank: int, ranks: int) -> None:
        self.stream, self.rank, self.ranks = stream, rank, ranks

    def __iter__(self) -> Iterator[Any]:
        return islice(self.stream, self.rank, None, self.ranks)


def _check(domains: Sequence[Domain], sizes: Sequence[int], weights: Sequence[float] | None) -> None:
    if not domains:
        raise UserError("source: found no domain to train on, expected at least one")
    for domain, size in zip(domains, sizes, strict=True):
        if not size:
            raise UserError(f"source: {domain.name} holds no image")
        if domain.labels.names != domains[0].labels.names:
            raise UserError(
                f"source: {domain.name} has the classes {', '.join(domain.labels.names)}, but {domains[0].name} has "
                f"{', '.join(domains[0].labels.names)}; train on domains of the same classes in the same order"
            )
    if weights is not None and (len(weights) != len(domains) or not all(0 < weight < np.inf for weight in weights)):
        raise UserError(f"source: found the weights {list(weights)}, expected a positive number for each domain")
