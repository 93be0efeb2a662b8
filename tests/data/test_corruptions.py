import colorsys
import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats
from torch.utils.data import DataLoader

from deft_hf.data.corruptions import CORRUPTIONS, SEVERITIES, CorruptedDomain, corrupted, corruption_suite, patterns
from deft_hf.data.corruptions import photons as photons_by_table
from deft_hf.data.corruptions.kinds import corrupt
from deft_hf.data.corruptions.photons import counted_photons
from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.data.sampling import EvaluationSet, TrainingSet
from deft_hf.data.streets import STREETS, draw_street
from deft_hf.data.transforms import EvalTransform, TrainTransform
from deft_hf.utils.errors import UserError

RANDOM = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "motion_blur", "fog", "snow", "frost")


@pytest.fixture(scope="module")
def town():
    return Domain.from_streets("clear", count=3, size=(96, 128), name="town")


@pytest.fixture(scope="module")
def street():
    return Image.fromarray(draw_street("clear", 3, (224, 256))[0])


def flat(level, side=256):
    return Image.fromarray(np.full((side, side, 3), level, np.uint8))


def levels(image, kind, severity, seed=0):
    """The corrupted image as floats in 0..255."""
    return np.asarray(corrupt(image, kind, severity, np.random.default_rng(seed)), np.float64)


def by_severity(name, *constants):
    return pytest.mark.parametrize(f"severity, {name}", list(enumerate(constants, start=1)))


def equal(pictures, others):
    return all(np.array_equal(a, b) for a, b in zip(pictures, others, strict=True))


def pictures(domain, order=None):
    return [np.asarray(domain.load(index)[0]) for index in order or range(len(domain))]


# --- the formulas, with the paper's constants written out once more


@by_severity("deviation", 0.08, 0.12, 0.18, 0.26, 0.38)
def test_gaussian_noise_has_the_stated_deviation(severity, deviation):
    noise = np.abs(levels(flat(128), "gaussian_noise", severity) - 128) / 255
    # The share of a Gaussian within one deviation, which values cut off further out do not change.
    assert np.quantile(noise, 0.6827) == pytest.approx(deviation, rel=0.02)


@by_severity("deviation", 0.15, 0.2, 0.35, 0.45, 0.6)
def test_speckle_noise_is_proportional_to_the_image(severity, deviation):
    for level in (60, 120):
        noise = np.abs(levels(flat(level), "speckle_noise", severity) - level) / level
        assert np.quantile(noise, 0.6827) == pytest.approx(deviation, rel=0.03)


@by_severity("photons", 60, 25, 12, 5, 3)
def test_shot_noise_counts_photons(severity, photons):
    found = levels(flat(17), "shot_noise", severity)
    assert found.mean() == pytest.approx(17, rel=0.02)
    assert (found / 255).var() == pytest.approx(17 / 255 / photons, rel=0.04)
    assert set(np.unique(found)) <= set(np.rint(np.arange(photons + 1) / photons * 255))


@by_severity("photons", 60, 25, 12, 5, 3)
def test_photons_are_poisson_distributed(severity, photons):
    for level in (0, 1, 40, 128, 255):
        counts = counted_photons(np.full((300, 400), level, np.uint8), photons, np.random.default_rng(severity))
        seen = np.bincount(counts.ravel(), minlength=photons + 1)
        shares = stats.poisson.pmf(np.arange(photons + 1), level / 255 * photons)
        shares[-1] = 1 - shares[:-1].sum()  # white, and what is more than white
        often = 120_000 * shares >= 10
        expected = np.append(120_000 * shares[often], max(120_000 * shares[~often].sum(), 1e-9))
        found = np.append(seen[often], seen[~often].sum())
        assert ((found - expected) ** 2 / np.maximum(expected, 1)).sum() < stats.chi2.ppf(1 - 1e-4, often.sum())


def test_photons_are_those_of_one_inverted_distribution():
    """The table leaves no level and no cell to chance: where it settles a count, both ends of the cell have it."""
    settled, _ = photons_by_table._tables(5)
    cells = settled.reshape(256, -1)
    for level in (0, 3, 77, 255):
        ends = np.arange(cells.shape[1]) / cells.shape[1], np.nextafter((np.arange(cells.shape[1]) + 1) / 4096, 0)
        low, high = (np.minimum(stats.poisson.ppf(end, level / 51).clip(0), 5) for end in ends)
        sure = cells[level] != 255
        assert sure.mean() > 0.99 and (cells[level] == low)[sure][1:].all() and (cells[level] == high)[sure][1:].all()


@by_severity("share", 0.03, 0.06, 0.09, 0.17, 0.27)
def test_impulse_noise_is_half_salt_half_pepper(severity, share):
    found = levels(flat(90), "impulse_noise", severity)
    assert set(np.unique(found)) == {0, 90, 255}
    assert (found == 0).mean() == pytest.approx(share / 2, rel=0.05)
    assert (found == 255).mean() == pytest.approx(share / 2, rel=0.05)


@by_severity("sigma", 1, 2, 3, 4, 6)
def test_gaussian_blur_equals_scipys(street, severity, sigma):
    for image in (street, street.resize((112, 168))):
        scaled = sigma * min(image.size) / 224
        expected = ndimage.gaussian_filter(np.asarray(image, np.float64), (scaled, scaled, 0), mode="mirror")
        assert np.abs(levels(image, "gaussian_blur", severity) - expected).max() < 0.51


@by_severity("radius", 3, 4, 6, 8, 10)
def test_defocus_blur_is_the_mean_over_a_disk(street, severity, radius):
    # The share of each pixel that a disk covers, counted on a raster ten times as fine.
    fine = (np.arange(-10 * (radius + 1), 10 * (radius + 2)) + 0.5) / 10 - 0.5
    inside = np.hypot(fine[:, None], fine) <= radius
    disk = inside.reshape(2 * radius + 3, 10, -1, 10).mean((1, 3))
    expected = ndimage.convolve(np.asarray(street, np.float64), (disk / disk.sum())[..., None], mode="mirror")
    error = np.abs(levels(street, "defocus_blur", severity) - expected)
    assert error.mean() < 0.6 and error.max() < 6


@pytest.mark.parametrize("radius, sigma", [(10, 3), (15, 12), (2.9, 0.9)])
def test_a_streak_has_imagemagicks_weights_around_its_centre(radius, sigma):
    steps = np.arange(round(2 * radius) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    deviation = np.sqrt(np.cov(steps, aweights=weights, ddof=0))
    for angle in (-45, 0, 20, 90):
        kernel = patterns.motion_kernel(radius, sigma, angle)
        reach = len(kernel) // 2
        down, right = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        assert kernel.sum() == pytest.approx(1) and kernel.min() >= 0
        assert (kernel * down).sum() == pytest.approx(0, abs=1e-5)
        assert (kernel * right).sum() == pytest.approx(0, abs=1e-5)
        along = right * np.cos(np.radians(angle)) + down * np.sin(np.radians(angle))
        across = down * np.cos(np.radians(angle)) - right * np.sin(np.radians(angle))
        # A point between pixels is shared among the four around it, which lie within a pixel.
        assert np.sqrt((kernel * along**2).sum()) == pytest.approx(deviation, abs=0.3)
        assert np.sqrt((kernel * across**2).sum()) < 0.6


def test_motion_blur_does_not_move_what_is_labelled():
    down, right = np.mgrid[-112:112, -112:112]
    blob = (250 * np.exp(-(down**2 + right**2) / (2 * 15**2))).astype(np.uint8)
    image = Image.fromarray(np.repeat(blob[..., None], 3, 2))
    for seed in range(3):
        found = levels(image, "motion_blur", 5, seed)[..., 0]
        assert np.abs(found - blob).max() > 20
        for offsets in (down, right):
            assert (found * offsets).sum() / found.sum() == pytest.approx(
                (blob * 1.0 * offsets).sum() / blob.sum(), abs=0.3
            )


@by_severity("amount", 1.5, 2, 2.5, 2.5, 3)
def test_fog_is_added_and_the_whole_scaled_back(severity, amount):
    for level in (0, 102, 255):
        found, brightest = levels(flat(level, 100), "fog", severity), level / 255
        assert found.max() == level, "what is brightest stays as bright where the fog is thickest"
        assert found.min() == pytest.approx(level * brightest / (brightest + amount), abs=0.51)


def test_plasma_equals_the_diamond_square_algorithm_point_by_point():
    side, decay = 8, 1.7
    rng = np.random.default_rng(5)
    heights, reach, step = {(0, 0): 0.0}, 1.0, side
    while step > 1:
        half = step // 2
        # Middles of squares first, then the middles of their upper and of their left edges, which lie in diamonds.
        for offset, ring in (
            ((half, half), [(-half, -half), (-half, half), (half, -half), (half, half)]),
            ((0, half), [(-half, 0), (half, 0), (0, -half), (0, half)]),
            ((half, 0), [(-half, 0), (half, 0), (0, -half), (0, half)]),
        ):
            draws = rng.random((side // step, side // step), np.float32) * 2 - 1
            for row, column in np.ndindex(draws.shape):
                y, x = row * step + offset[0], column * step + offset[1]
                around = [heights[(y + dy) % side, (x + dx) % side] for dy, dx in ring]
                heights[y, x] = sum(around) / 4 + reach * draws[row, column]
        step, reach = half, reach / decay**2
    expected = np.array([[heights[y, x] for x in range(7)] for y in range(5)])
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    np.testing.assert_allclose(patterns.plasma((5, 7), decay, np.random.default_rng(5)), expected, atol=1e-5)


def test_snow_whitens_what_it_does_not_cover(street):
    assert levels(flat(0), "snow", 1).min() == pytest.approx(0.2 * 0.5 * 255, abs=1)
    assert levels(flat(0), "snow", 1).max() > 100
    for severity in SEVERITIES:
        assert (levels(street, "snow", severity) >= np.asarray(street)).all()


def test_flakes_are_where_noise_is_above_the_threshold():
    layer = patterns.flakes((300, 400), mean=0.2, deviation=0.3, cell=1, threshold=0.5, rng=np.random.default_rng(0))
    assert layer.shape == (300, 400) and layer.max() <= 1
    assert layer[layer > 0].min() >= 0.5
    wide = patterns.flakes((300, 400), mean=0.2, deviation=0.3, cell=8, threshold=0.5, rng=np.random.default_rng(0))
    assert 5 * ndimage.label(wide)[1] < ndimage.label(layer)[1], "larger cells are fewer and larger flakes"


@by_severity("shares", (1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))
def test_frost_is_blended_in(severity, shares):
    image_share, frost_share = shares
    ice, both = (levels(flat(level), "frost", severity) for level in (0, 100))
    assert 0.9 * 255 * frost_share < ice.max() <= 255 * frost_share + 0.5
    seen = both < 255
    assert np.abs(both - ice - 100 * image_share)[seen].max() <= 1 and seen.mean() > 0.5


def test_frost_covers_as_much_of_a_picture_of_any_size():
    means = [patterns.frost(size, np.random.default_rng(1)).mean() for size in ((64, 64), (224, 224), (600, 600))]
    assert 0.25 < min(means) and max(means) - min(means) < 0.03


@by_severity("more", 0.1, 0.2, 0.3, 0.4, 0.5)
def test_brightness_adds_to_the_value_of_hsv(severity, more):
    colours = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    colours[0, 0], colours[0, 1], colours[0, 2] = 0, 255, (1, 0, 0)
    found = levels(Image.fromarray(colours), "brightness", severity)
    for row, column in np.ndindex(9, 9):
        hue, saturation, value = colorsys.rgb_to_hsv(*(colours[row, column] / 255))
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + more, 1))
        np.testing.assert_allclose(found[row, column], np.multiply(expected, 255), atol=0.51)


@by_severity("factor", 0.4, 0.3, 0.2, 0.1, 0.05)
def test_contrast_shrinks_towards_the_mean_colour(street, severity, factor):
    pixels = np.asarray(street, np.float64)
    means = pixels.reshape(-1, 3).mean(0)
    expected = means + factor * (pixels - means)
    np.testing.assert_allclose(levels(street, "contrast", severity), expected, atol=0.51)


@by_severity("share", 0.6, 0.5, 0.4, 0.3, 0.25)
def test_pixelate_is_the_papers_at_its_size_and_keeps_its_share_of_larger_ones(street, severity, share):
    image = street.crop((0, 0, 224, 224))
    small = image.resize((int(224 * share), int(224 * share)), Image.Resampling.BOX)
    expected = np.asarray(small.resize((224, 224), Image.Resampling.BOX))
    np.testing.assert_array_equal(levels(image, "pixelate", severity), expected)
    colours = np.random.default_rng(0).integers(0, 256, (896, 896, 3), np.uint8)
    runs = np.diff(levels(Image.fromarray(colours), "pixelate", severity), axis=1).any(-1)
    assert 896 / runs[0].sum() == pytest.approx(1 + (1 / share - 1) * 4, rel=0.05)


@by_severity("quality", 25, 18, 15, 10, 7)
def test_jpeg_equals_pillows_at_the_stated_quality(street, severity, quality):
    stream = io.BytesIO()
    street.save(stream, "JPEG", quality=quality)
    np.testing.assert_array_equal(levels(street, "jpeg", severity), np.asarray(Image.open(stream)))


# --- every kind


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("size", [(64, 64), (1024, 2048)])
def test_size_and_type_stay(street, kind, size):
    image = street.resize(size[::-1])
    before = np.asarray(image).copy()
    for severity in (1, 5):
        found = corrupt(image, kind, severity, np.random.default_rng(0))
        assert found.mode == "RGB" and found.size == size[::-1]
        assert np.asarray(found).dtype == np.uint8 and not np.array_equal(np.asarray(found), before)
    assert np.array_equal(np.asarray(image), before)


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("size", [(65, 199), (7, 5), (1, 1)])
def test_odd_and_tiny_sizes_work(street, kind, size):
    assert corrupt(street.resize(size[::-1]), kind, 5, np.random.default_rng(0)).size == size[::-1]


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_what_is_left_of_a_street_falls_with_severity(kind):
    # There is as much fog at severity 3 as at 4, only rougher, which shows on average.
    streets = Domain.from_streets("clear", count=40 if kind == "fog" else 3, size=(64, 96))

    def likeness(severity):
        """PSNR in dB; of frost the correlation, since its images grow darker while the ice grows brighter."""
        pairs = zip(pictures(streets), pictures(corrupted(streets, kind, severity)), strict=True)
        if kind == "frost":
            return np.mean([np.corrcoef(clean.ravel(), found.ravel())[0, 1] for clean, found in pairs])
        return np.mean([10 * np.log10(255**2 / np.square(clean - found * 1.0).mean()) for clean, found in pairs])

    found = [likeness(severity) for severity in SEVERITIES]
    assert (np.diff(found) < 0).all(), found


# --- what a picture depends on


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_picture_depends_on_seed_id_kind_and_severity_alone(town, kind):
    domain = corrupted(town, kind, 2)
    found = pictures(domain)
    np.random.seed(1)
    state = np.random.get_state()[1].copy()
    assert equal(pictures(domain, [2, 0, 1]), [found[2], found[0], found[1]])
    assert equal(pictures(corrupted(town.select([2, 1]), kind, 2)), [found[2], found[1]])
    assert equal(pictures(domain.select([2])), [found[2]])
    assert equal(pictures(corrupted(town, kind))[3:6], found), "the pooled domain holds the same pictures"
    assert np.array_equal(np.random.get_state()[1], state)
    others = pictures(corrupted(town, kind, 2, seed=1))
    assert all(np.array_equal(a, b) != (kind in RANDOM) for a, b in zip(found, others, strict=True))


@pytest.mark.parametrize("kind", RANDOM)
def test_equal_images_of_two_ids_are_corrupted_differently(kind):
    twins = Domain.from_streets("clear", count=1, size=(64, 64))
    rows = {"id": ["a", "b"], "image": twins.dataset["image"][:] * 2, "mask": twins.dataset["mask"][:] * 2}
    twins = Domain("twins", STREETS, type(twins.dataset).from_dict(rows, features=twins.dataset.features))
    first, second = pictures(twins)
    assert np.array_equal(first, second)
    first, second = pictures(corrupted(twins, kind, 3))
    assert not np.array_equal(first, second)


def test_worker_processes_make_the_same_items(town):
    items = EvaluationSet(corrupted(town, "gaussian_noise"), EvalTransform(size=(48, 64)))
    assert len(items) == 15 and items.domain.name == "town_gaussian_noise"
    loaded = list(DataLoader(items, batch_size=None, num_workers=2))
    for index, item in enumerate(loaded):
        assert item["pixel_values"].shape == (3, 48, 64) and item["labels"].shape == (96, 128)
        assert all((item[key] == items[index][key]).all() for key in item)


# --- the domain


def test_all_severities_are_one_domain_by_default(town):
    domain = corrupted(town, "contrast")
    assert isinstance(domain, Domain) and len(domain) == 15 and domain.labels is town.labels
    assert domain.ids == [f"{key}_{severity}" for severity in SEVERITIES for key in town.ids]
    for index in range(15):
        image, mask = domain.load(index)
        clean, truth = town.load(index % 3)
        assert np.array_equal(mask, truth) and mask.dtype == np.uint8
        assert np.array_equal(levels(clean, "contrast", index // 3 + 1), np.asarray(image))


def test_one_severity(town):
    domain = corrupted(town, "fog", 3)
    assert domain.name == "town_fog_3" and domain.ids == ["000000_3", "000001_3", "000002_3"]
    assert corrupted(town, "fog").name == "town_fog"
    assert corrupted(town, "fog", 3, name="mist").name == "mist"


def test_select_takes_ids_or_positions(town):
    domain = corrupted(town, "jpeg")
    some = domain.select(["000001_4", "000000_1"])
    assert isinstance(some, CorruptedDomain) and some.name == "town_jpeg" and some.ids == ["000001_4", "000000_1"]
    assert equal(pictures(some), [pictures(domain, [10])[0], pictures(domain, [0])[0]])
    assert domain.select(range(4, 8)).select([1]).ids == ["000002_2"]
    with pytest.raises(UserError, match="town_jpeg: has no pair 000001; its ids look like '000000_1'"):
        domain.select(["000001"])


def test_a_corrupted_domain_can_be_corrupted(town):
    dusty = corrupted(corrupted(town, "contrast", 1), "gaussian_noise", 2)
    assert dusty.name == "town_contrast_1_gaussian_noise_2" and dusty.ids[0] == "000000_1_2"
    assert pictures(dusty)[0].std() < pictures(town)[0].std()
    assert dusty.check().checked == 3


def test_it_can_be_trained_on(town):
    items = TrainingSet([town, corrupted(town, "fog", 1)], TrainTransform(crop=(32, 32), max_class_share=1.0))
    assert len(items) == 6 and items[0]["pixel_values"].shape == (3, 32, 32)


def test_check_decodes_each_clean_pair_once(tmp_path, monkeypatch):
    for kind in ("images", "masks"):
        (tmp_path / "town" / kind).mkdir(parents=True)
        for key in "abc":
            Image.fromarray(np.ones((6, 8), np.uint8)).save(tmp_path / "town" / kind / f"{key}.png")
    (tmp_path / "town" / "masks" / "c.png").unlink()
    clean = Domain.from_folder(tmp_path / "town", LabelSpace(("wall", "door")))
    domain = corrupted(clean, "fog")
    report = domain.check()
    assert (report.domain, report.pairs, report.checked) == ("town_fog", 10, 2)
    assert report.images_without_mask == ["c"] and report.shares["door"] == 1
    assert (clean.name, clean.report.domain, len(clean)) == ("town", "town", 2)
    (tmp_path / "town" / "images" / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"town_fog: found files.*\n.*unreadable files: 1\n.*a\.png"):
        corrupted(Domain.from_folder(tmp_path / "town", clean.labels), "fog").check().raise_if_bad()
    assert domain.select(["b_1", "b_4"]).check().checked == 1


def test_the_suite_holds_every_kind_at_every_severity(town):
    suite = corruption_suite(town)
    assert [domain.name for domain in suite] == [f"town_{kind}_{s}" for kind in CORRUPTIONS for s in SEVERITIES]
    pooled = corruption_suite(town, ["fog", "jpeg"], [None], seed=4)
    assert [(domain.name, len(domain), domain.seed) for domain in pooled] == [
        ("town_fog", 15, 4),
        ("town_jpeg", 15, 4),
    ]


@pytest.mark.parametrize(
    "kind, severity, message",
    [
        ("mist", 1, r"^corruption: found 'mist', expected one of gaussian_noise, .*, jpeg$"),
        ("fog", 6, "^severity: found 6, expected one of 1, 2, 3, 4, 5, or None for all five$"),
        ("fog", 0, "^severity: found 0"),
    ],
)
def test_unknown_kinds_and_severities_are_refused(town, kind, severity, message):
    with pytest.raises(UserError, match=message):
        corrupted(town, kind, severity)
    with pytest.raises(UserError, match=message):
        corruption_suite(town, [kind], [severity])
