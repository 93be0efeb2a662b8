import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F

from deft_hf.data.colors import distort_photometrically
from deft_hf.data.streets import draw_street
from deft_hf.data.styles import STYLES, augmix, fourier_amplitudes, random_convolution
from deft_hf.data.transforms import TrainTransform
from deft_hf.recipe import Recipe
from deft_hf.recipe.data import DataSection
from deft_hf.recipe.values import choices
from deft_hf.utils.errors import UserError


def street(size=(48, 64)):
    image, mask = draw_street("clear", 0, size)
    return Image.fromarray(image), mask


def pixels(size=(48, 64)):
    return torch.from_numpy(np.asarray(street(size)[0], np.float32) / 255).permute(2, 0, 1)


class Chosen:
    """A generator whose numbers are given."""

    def __init__(self, **answers):
        self.answers = {name: iter(values) for name, values in answers.items()}

    def __getattr__(self, name):
        return lambda *args, **kwargs: next(self.answers[name])


# ---- the formulas


def test_a_random_convolution_is_the_one_of_the_paper():
    weights = np.random.default_rng(0).standard_normal((3, 3, 5, 5), np.float32)
    found = random_convolution(pixels(), Chosen(integers=[2], standard_normal=[weights.copy()], random=[0.3]))
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    normal = (pixels() - mean) / std
    convolved = F.conv2d(normal[None], torch.from_numpy(weights) / np.sqrt(3 * 25), padding=2)[0]
    torch.testing.assert_close((found - mean) / std, 0.3 * normal + 0.7 * convolved, rtol=1e-4, atol=1e-5)


def test_augmix_is_a_mixture_of_chains():
    shares = np.array([0.5, 0.3, 0.2])
    chosen = Chosen(dirichlet=[shares], beta=[0.25], integers=[1, 3, 1, 2, 2, 0, 2], uniform=[3] * 5)
    image = street()[0]
    chains = [
        ImageOps.solarize(image, 256 - 76),
        ImageOps.posterize(image, 3),
        ImageOps.posterize(ImageOps.autocontrast(image), 3),
    ]
    expected = 0.25 * np.asarray(image) + 0.75 * sum(
        share * np.asarray(chain, np.float64) for share, chain in zip(shares, chains, strict=True)
    )
    found = augmix(pixels(), chosen).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, expected / 255, atol=1e-5)


@pytest.mark.parametrize("size", [(48, 64), (47, 63), (1, 1)])
def test_fourier_amplitudes_are_those_of_the_paper(size):
    noise = np.random.default_rng(0).standard_normal((3, *size), np.float32)
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    found = fourier_amplitudes(image, Chosen(standard_normal=[noise]))
    spectrum = np.fft.fft2(image.numpy())
    m, n = (np.rint(np.fft.fftfreq(side) * side) for side in size)
    r = np.hypot(m[:, None], n)
    sigma = (3 * r / max(r.max(), 1)) ** 2 + 0.25
    changed = np.abs(spectrum) * (1 + sigma * noise) * np.exp(1j * np.angle(spectrum))
    np.testing.assert_allclose(found, np.fft.ifft2(changed).real.clip(0, 1), atol=1e-4)


def test_photometric_distortion_step_by_step():
    image = street()[0]
    nothing = distort_photometrically(image, Chosen(random=[0.9] * 5))
    assert np.array_equal(nothing, image)
    brighter = distort_photometrically(image, Chosen(random=[0.1, 0.9, 0.9, 0.9, 0.9], uniform=[20.0]))
    assert np.array_equal(brighter, np.clip(np.asarray(image, int) + 20, 0, 255))
    for first in (0.1, 0.9):  # contrast before or after: alone it is the same
        chosen = Chosen(random=[0.9, first, 0.1, 0.9, 0.9], uniform=[1.3])
        expected = np.clip(np.asarray(image) * 1.3, 0, 255).astype(np.uint8)
        assert np.array_equal(distort_photometrically(image, chosen), expected)
    grey = Image.new("RGB", (4, 4), (90, 90, 90))
    assert np.array_equal(distort_photometrically(grey, Chosen(random=[0.9, 0.9, 0.9, 0.1, 0.9], uniform=[1.4])), grey)
    red = Image.new("RGB", (1, 1), (200, 100, 100))
    (muted,) = {distort_photometrically(red, Chosen(random=[0.9] * 3 + [0.1, 0.9], uniform=[0.5])).getpixel((0, 0))}
    assert muted[0] == 200 and abs(muted[1] - 150) <= 2
    (turned,) = {distort_photometrically(red, Chosen(random=[0.9] * 4 + [0.1], uniform=[0.1])).getpixel((0, 0))}
    assert turned[0] == 200 and turned[1] == pytest.approx(160, abs=4) and turned[2] == 100


# ---- in crops


@pytest.mark.parametrize("settings", [*({"style": name} for name in STYLES), {"photometric_distortion": True}])
def test_the_image_alone_is_changed_and_by_the_seed_alone(settings):
    image, mask = street()
    plain = TrainTransform((32, 32), jitter=None)
    changed = TrainTransform((32, 32), jitter=None, style_probability=1.0, **settings)
    expected = plain(image, mask, np.random.default_rng(3))
    found, again = (changed(image, mask, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(found["labels"], expected["labels"])
    assert torch.equal(found["pixel_values"], again["pixel_values"])
    assert found["pixel_values"].dtype == torch.float32 and found["pixel_values"].isfinite().all()
    assert not torch.equal(found["pixel_values"], expected["pixel_values"])


def test_a_style_has_its_probability_and_leaves_the_recolored_copy_alone():
    image, mask = street((16, 16))
    plain = TrainTransform((16, 16), recolor=True)
    styled = TrainTransform((16, 16), recolor=True, style="fourier", style_probability=0.3)
    changed = 0
    for seed in range(60):
        expected, found = (each(image, mask, np.random.default_rng(seed)) for each in (plain, styled))
        assert torch.equal(found["recolored_pixel_values"], expected["recolored_pixel_values"])
        changed += not torch.equal(found["pixel_values"], expected["pixel_values"])
    assert 8 < changed < 30


def test_unknown_styles_are_refused():
    with pytest.raises(UserError, match="style: found 'cubism', expected one of randconv, augmix, fourier"):
        TrainTransform((8, 8), style="cubism")


# ---- in recipes


def test_recipes_have_every_style():
    assert choices(DataSection.model_fields["style"].annotation) == [*STYLES]


def test_the_distortion_takes_the_place_of_the_jitter(tmp_path):
    recipe = Recipe.load("quickstart", ["data.photometric_distortion=true", "data.augment=aerial"])
    assert recipe.data.color_jitter is None and recipe.data.turns
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), "utf-8")
    assert Recipe.load(tmp_path / "recipe.yaml").data == recipe.data


@pytest.mark.parametrize(
    "settings, message",
    [
        (["data.photometric_distortion=true", "data.color_jitter=[0.1, 0, 0, 0]"], "which takes its place"),
        (["data.style_probability=0.2"], "found 0.2 without data.style"),
        (["data.style=cubism"], "one of randconv, augmix, fourier"),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(UserError, match=message):
        Recipe.load("quickstart", settings)
