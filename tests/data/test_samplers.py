import numpy as np
import pytest

from deft_hf.data.class_index import ClassIndex
from deft_hf.data.geometry import Aim, Pose, Window
from deft_hf.data.samplers import ClassUniform, EveryImage, RareClass, apportion
from deft_hf.data.sampling import TrainingSet
from deft_hf.data.transforms import TrainTransform
from deft_hf.utils.errors import UserError
from tests.data.test_sampling import domain

# Twelve images of three classes: a in all, b in the first six, c in the first two alone.
PIXELS = np.zeros((12, 3), np.int64)
PIXELS[:, 0], PIXELS[:6, 1], PIXELS[:2, 2] = 9000, 400, (4000, 200)
CENTROIDS = np.array([(image, label, 3 + image, label) for image in range(12) for label in PIXELS[image].nonzero()[0]])
INDEX = ClassIndex(PIXELS, CENTROIDS.astype(np.int32))


def drawn(sampler, epochs=200, count=10):
    rngs = [np.random.default_rng(epoch) for epoch in range(epochs)]
    found = [sampler.draw(count, rng) for rng in rngs]
    images = np.concatenate([images for images, _ in found])
    return images, [aim for _, aims in found for aim in aims]


def test_class_uniform_shares_its_part_out_evenly():
    images, aims = drawn(ClassUniform(INDEX, share=0.5))
    labels = np.array([-1 if aim is None else aim.point[1] for aim in aims])
    counts = np.array([(labels == each).sum() for each in (-1, 0, 1, 2)]) / len(labels)
    np.testing.assert_allclose(counts, [1 / 2, 1 / 6, 1 / 6, 1 / 6], atol=0.02)
    for image, aim in zip(images, aims, strict=True):
        assert aim is None or (image, aim.point[1], *aim.point) in {tuple(row) for row in CENTROIDS.tolist()}
    of_each = np.bincount(images[labels == -1], minlength=12) / (labels == -1).sum()
    np.testing.assert_allclose(of_each, 1 / 12, atol=0.02)


def test_class_uniform_repeats_no_centroid_before_all_were_taken():
    images, aims = ClassUniform(INDEX, share=1).draw(36, np.random.default_rng(0))
    places = [(int(image), aim.point[1]) for image, aim in zip(images, aims, strict=True)]
    assert sorted(image for image, label in places if label == 0) == [*range(12)]
    assert [sum(place == (image, 2) for place in places) for image in (0, 1)] == [6, 6]
    assert [label for _, label in places] != sorted(label for _, label in places), "classes are mixed"


def test_rare_class_follows_the_formula():
    shares = PIXELS.sum(0) / PIXELS.sum()
    for temperature in (0.01, 0.1, 0.5):
        sampler = RareClass(INDEX, temperature, crop_pixels=5)
        weights = np.exp((1 - shares) / temperature)
        expected = weights / weights.sum()
        np.testing.assert_allclose(sampler.probabilities, expected)
        _, aims = drawn(sampler)
        counts = np.bincount([aim.label for aim in aims], minlength=3)
        np.testing.assert_allclose(counts / counts.sum(), expected, atol=0.01)
        assert {aim.pixels for aim in aims} == {5}


def test_rare_class_takes_images_that_show_the_class():
    images, aims = drawn(RareClass(INDEX, temperature=1.0, pixels=3000))
    shown = {label: {int(i) for i, aim in zip(images, aims, strict=True) if aim.label == label} for label in range(3)}
    # None of class b has 3000 pixels: then any of it is enough.
    assert shown == {0: {*range(12)}, 1: {*range(6)}, 2: {0}}


def test_classes_that_a_domain_lacks_have_no_part():
    nothing = ClassIndex(np.zeros((4, 3), np.int64), np.empty((0, 4), np.int32))
    for sampler in (ClassUniform(nothing), RareClass(nothing), EveryImage(4)):
        images, aims = sampler.draw(4, np.random.default_rng(0))
        assert sorted(images) == [0, 1, 2, 3] and set(aims) == {None}
    lacking = ClassIndex(np.array([[5, 0, 1]]), np.empty((0, 4), np.int32))
    assert set(RareClass(lacking, temperature=9.0).classes) == {0, 2}


@pytest.mark.parametrize("make", [lambda: ClassUniform(INDEX, share=1.1), lambda: RareClass(INDEX, temperature=0.0)])
def test_figures_out_of_range(make):
    with pytest.raises(UserError, match="found"):
        make()


def test_shares_are_kept_within_one():
    rng = np.random.default_rng(0)
    counts = np.array([apportion([0.2, 0.5, 0.3], 7, rng) for _ in range(400)])
    assert (counts.sum(1) == 7).all() and (np.abs(counts - [1.4, 3.5, 2.1]) < 1).all()
    np.testing.assert_allclose(counts.mean(0), [1.4, 3.5, 2.1], atol=0.1)


# ---- what comes out of a training set


def aimed(image, mask, rng, aim=None):
    number, index, _ = image.getpixel((0, 0))
    return number, index, aim, rng.random()


def fresh(seed=0, weights=None):
    domains = [domain(0, 12), domain(1, 4)]
    return TrainingSet(domains, aimed, weights, seed, samplers=[RareClass(INDEX), EveryImage(4)])


def test_items_are_functions_of_seed_epoch_and_index():
    used, late = fresh(), fresh()
    for epoch in (0, 3):
        used.set_epoch(epoch)
        items = [used[index] for index in range(16)]
    late.set_epoch(3)
    assert [late[index] for index in (15, 2, 9)] == [items[index] for index in (15, 2, 9)]
    other = fresh(seed=1)
    other.set_epoch(3)
    assert [other[index] for index in range(16)] != items
    assert [aim is None for number, _, aim, _ in items] == [number == 1 for number, *_ in items]


def test_there_is_a_sampler_for_each_domain():
    with pytest.raises(UserError, match="samplers: found 1, expected one for each of the 2 domains"):
        TrainingSet([domain(0, 12), domain(1, 4)], aimed, samplers=[EveryImage(12)])


def test_an_index_without_tiles_has_no_places_to_draw_from():
    with pytest.raises(UserError, match="index: found no centroids, by which crops are drawn; make it with ClassInd"):
        ClassUniform(ClassIndex(INDEX.pixels, np.empty((0, 4), np.int32)))


def test_domains_keep_their_weights():
    training_set = fresh(weights=[1, 3])
    numbers = []
    for epoch in range(20):
        training_set.set_epoch(epoch)
        numbers += [training_set[index][0] for index in range(16)]
    assert sum(numbers) == 12 * 20


def test_what_stands_in_for_an_unreadable_image_is_not_aimed():
    training_set = fresh()
    training_set.reader.load = lambda which, index: (*training_set.domains[which].load(index), False)
    assert all(training_set[index][2] is None for index in range(16))


# ---- crops


@pytest.mark.parametrize("angle", [0.0, 30.0])
@pytest.mark.parametrize("scaled", [(40, 60), (80, 120), (20, 30), (10, 70)])
def test_a_crop_covers_its_point(scaled, angle):
    rng = np.random.default_rng(0)
    pose, places = Pose((16, 24), angle=angle), set()
    for point in [(0, 0), (39, 59), (20, 30), (5, 50)] * 20:
        marked = np.zeros((40, 60), np.uint8)
        marked[max(point[0] - 4, 0) : point[0] + 5, max(point[1] - 4, 0) : point[1] + 5] = 1
        window = Window.draw((40, 60), scaled, pose, rng, point)
        left, top, right, bottom = window.box
        assert top <= point[0] + 0.5 <= bottom and left <= point[1] + 0.5 <= right
        assert 0 <= left < right <= 60 and 0 <= top < bottom <= 40
        if not angle:
            assert (window.cut(marked) == 1).any()
        places.add((round(left), round(top)))
    assert len(places) > 2, "the place is random"


def test_a_crop_is_drawn_again_until_it_shows_the_class():
    from PIL import Image

    mask = np.zeros((100, 100), np.uint8)
    mask[90:, 90:] = 1
    image = Image.new("RGB", (100, 100))
    transform = TrainTransform((40, 40), scale=(1, 1), jitter=None, blur=None, max_class_share=1.0)

    def shown(aim):
        items = [transform(image, mask, np.random.default_rng(seed), aim) for seed in range(60)]
        return np.mean([(item["labels"] == 1).sum() > 20 for item in items])

    assert shown(None) < 0.1
    assert shown(Aim(label=1, pixels=20)) == pytest.approx(1 - (1 - shown(None)) ** 10, abs=0.25)
    assert shown(Aim(point=(95, 95))) > 0.8


def test_without_an_aim_nothing_changes():
    drawn_plainly = Window.draw((40, 60), (50, 70), Pose((16, 24)), np.random.default_rng(1))
    rng = np.random.default_rng(1)
    top, left = (int(rng.integers(0, side - length + 1)) for side, length in ((50, 16), (70, 24)))
    assert drawn_plainly.box == (left * 60 / 70, top * 40 / 50, (left + 24) * 60 / 70, (top + 16) * 40 / 50)
