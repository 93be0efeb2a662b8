import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, random_split

from deft_hf.data.collate import collate
from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.data.sampling import EvaluationSet, TrainingSet, set_epoch
from deft_hf.data.transforms import EvalTransform, TrainTransform
from deft_hf.utils.errors import UserError

LABELS = LabelSpace(("a", "b"))


def domain(number, count, size=(8, 10), labels=LABELS):
    """A domain whose images are painted (number, index, 0)."""

    def png(array):
        stream = io.BytesIO()
        Image.fromarray(array).save(stream, "PNG")
        return {"path": None, "bytes": stream.getvalue()}

    columns = {
        "id": [str(index) for index in range(count)],
        "image": [png(np.full((*size, 3), (number, index, 0), np.uint8)) for index in range(count)],
        "mask": [png(np.full(size, index % 2, np.uint8)) for index in range(count)],
    }
    image = datasets.Image(decode=False)
    features = datasets.Features({"id": datasets.Value("string"), "image": image, "mask": image})
    return Domain(f"domain {number}", labels, datasets.Dataset.from_dict(columns, features=features))


def name(image, mask, rng):
    """A transform that tells which image it was given, and what its generator says first."""
    number, index, _ = image.getpixel((0, 0))
    return number, index, rng.random()


def shown(training_set, epoch):
    training_set.set_epoch(epoch)
    return [training_set[index] for index in range(len(training_set))]


def pairs(items):
    return [item[:2] for item in items]


def test_an_epoch_holds_every_image_of_one_domain_once():
    training_set = TrainingSet([domain(0, 7)], name)
    epochs = [pairs(shown(training_set, epoch)) for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == [(0, index) for index in range(7)]
    assert epochs[0] != epochs[1] != epochs[2]


def test_an_epoch_holds_every_image_of_several_domains_once():
    training_set = TrainingSet([domain(0, 5), domain(1, 2), domain(2, 3)], name)
    assert len(training_set) == 10
    for epoch in range(20):
        assert sorted(pairs(shown(training_set, epoch))) == [
            (d, i) for d, n in ((0, 5), (1, 2), (2, 3)) for i in range(n)
        ]


def test_domains_are_mixed():
    training_set = TrainingSet([domain(0, 30), domain(1, 30)], name)
    first_half = [number for number, _ in pairs(shown(training_set, 0))[:30]]
    assert 5 < sum(first_half) < 25


def test_no_image_repeats_before_all_were_shown():
    training_set = TrainingSet([domain(0, 4)], name, length=10)
    indices = [index for _, index in pairs(shown(training_set, 0))]
    assert sorted(indices[:4]) == sorted(indices[4:8]) == [0, 1, 2, 3] and indices[:4] != indices[4:8]
    assert len(set(indices[8:])) == 2


def test_weights_are_kept_to_within_one_item_and_on_average():
    training_set = TrainingSet([domain(0, 9), domain(1, 2), domain(2, 3)], name, weights=[0.5, 3, 1.5], length=17)
    counts = np.array(
        [np.bincount([number for number, _ in pairs(shown(training_set, epoch))], minlength=3) for epoch in range(150)]
    )
    expected = 17 * np.array([0.1, 0.6, 0.3])
    assert (counts.sum(1) == 17).all() and (np.abs(counts - expected) < 1).all()
    np.testing.assert_allclose(counts.mean(0), expected, atol=0.15)


def test_a_weight_may_be_less_than_one_item_an_epoch():
    training_set = TrainingSet([domain(0, 3), domain(1, 3)], name, weights=[0.95, 0.05], length=4)
    rare = sum(number for epoch in range(100) for number, _ in pairs(shown(training_set, epoch)))
    assert 10 < rare < 30


def test_an_item_is_a_function_of_seed_epoch_and_index():
    def fresh(seed=3):
        return TrainingSet([domain(0, 5), domain(1, 4)], name, weights=[1, 2], seed=seed)

    used = fresh()
    shown(used, 0), shown(used, 9)
    expected = shown(used, 4)
    late = fresh()
    late.set_epoch(4)
    assert [late[index] for index in (8, 0, 5)] == [expected[index] for index in (8, 0, 5)]
    assert len({draw for _, _, draw in expected + shown(used, 5)}) == 18, "no augmentation repeats another"
    assert shown(fresh(seed=2), 4) != expected


def test_workers_that_live_on_see_the_epoch():
    def fresh():
        return TrainingSet([domain(0, 5), domain(1, 4)], TrainTransform((6, 6), recolor=True), seed=1)

    training_set, reference = fresh(), fresh()
    loader = DataLoader(training_set, batch_size=3, num_workers=2, persistent_workers=True, collate_fn=collate)
    seen = []
    for epoch in (0, 1, 5):
        training_set.set_epoch(epoch)
        reference.set_epoch(epoch)
        batches = list(loader)
        seen.append(torch.cat([batch["pixel_values"] for batch in batches]))
        for number, batch in enumerate(batches):
            expected = collate([reference[index] for index in range(3 * number, 3 * number + 3)])
            assert batch.keys() == expected.keys()
            assert all(torch.equal(batch[key], expected[key]) for key in batch)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


class Renamed(Dataset):
    """A wrapper of a user's own, which keeps what it wraps under a name of its own."""

    def __init__(self, **parts):
        self.parts = parts

    def __len__(self):
        return sum(map(len, self.parts.values()))

    def __getitem__(self, index):
        return next(iter(self.parts.values()))[index]


class Plain:
    """No torch data set at all."""

    def __init__(self, inner):
        self.__inner = inner

    def __getitem__(self, index):
        return self.__inner[index]


WRAPPERS = {
    "itself": lambda inner: inner,
    "Subset": lambda inner: Subset(inner, range(len(inner))),
    "random_split": lambda inner: random_split(inner, [len(inner), 0])[0],
    "ConcatDataset": lambda inner: ConcatDataset([inner]),
    "Subset of ConcatDataset of Subset": lambda inner: Subset(
        ConcatDataset([Subset(inner, [*range(9)])]), [*range(9)]
    ),
    "own": lambda inner: Renamed(first=inner),
    "plain": lambda inner: Plain(Subset(inner, range(9))),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_epoch_reaches_a_training_set_through_wrappers(wrapper):
    inner = TrainingSet([domain(0, 5), domain(1, 4)], name)
    wrapped = WRAPPERS[wrapper](inner)
    for epoch in (0, 3):
        set_epoch(wrapped, epoch)
        assert int(inner._epoch) == epoch
        assert wrapped[0] in shown(TrainingSet([domain(0, 5), domain(1, 4)], name), epoch)


def test_the_epoch_reaches_living_workers_through_wrappers():
    inner = TrainingSet([domain(0, 5), domain(1, 4)], TrainTransform((6, 6)))
    loader = DataLoader(
        Subset(inner, range(9)), batch_size=3, num_workers=2, persistent_workers=True, collate_fn=collate
    )
    seen = []
    for epoch in (0, 1):
        set_epoch(loader.dataset, epoch)
        seen.append(torch.cat([batch["pixel_values"] for batch in loader]))
    assert not torch.equal(*seen)


def test_what_has_no_epoch_is_left_alone():
    loop = Renamed(first=[1, 2])
    loop.parts["self"] = loop
    for dataset in (None, [1, 2], loop, Subset([1, 2], [0]), datasets.Dataset.from_dict({"a": [1]})):
        set_epoch(dataset, 1)


def test_an_index_beyond_the_end_is_refused():
    training_set = TrainingSet([domain(0, 2)], name)
    for index in (2, -1):
        with pytest.raises(IndexError):
            training_set[index]
    assert len(list(training_set)) == 2


@pytest.mark.parametrize(
    "domains, weights, message",
    [
        ([], None, "found no domain"),
        ([(0, 2), (1, 0)], None, "domain 1 holds no image"),
        ([(0, 2)], [1, 1], r"found the weights \[1, 1\]"),
        ([(0, 2), (1, 2)], [1, 0], r"found the weights \[1, 0\]"),
        ([(0, 2), (1, 2)], [1, float("nan")], "found the weights"),
    ],
)
def test_domains_and_weights_that_do_not_fit_are_refused(domains, weights, message):
    with pytest.raises(UserError, match=message):
        TrainingSet([domain(*numbers) for numbers in domains], name, weights=weights)


def test_domains_of_other_classes_are_refused():
    other = domain(1, 2, labels=LabelSpace(("b", "a")))
    with pytest.raises(UserError, match="domain 1 has the classes b, a, but domain 0 has a, b"):
        TrainingSet([domain(0, 2), other], name)


def test_evaluation_shows_every_image_in_order():
    town = domain(3, 4)
    evaluation_set = EvaluationSet(town, EvalTransform((4, 5), (0, 0, 0), (1, 1, 1)))
    assert evaluation_set.domain is town and len(evaluation_set) == 4
    items = list(evaluation_set)
    assert [round(float(item["pixel_values"][1, 0, 0]) * 255) for item in items] == [0, 1, 2, 3]
    assert all(item.keys() == {"pixel_values", "labels"} for item in items)
    assert items[0]["pixel_values"].shape == (3, 4, 5) and items[0]["labels"].shape == (8, 10)
    batch = next(iter(DataLoader(evaluation_set, batch_size=4, collate_fn=collate)))
    assert batch["pixel_values"].shape == (4, 3, 4, 5) and batch["labels"].shape == (4, 8, 10)
