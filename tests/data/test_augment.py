"""Augmentation: strengths, ranges and reproducibility."""

from __future__ import annotations

import itertools
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from multigrain.data import augment
from multigrain.data.augment import Augmenter, autoaugment
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import normalize, preprocess_image
from multigrain.specs.training import AugmentationSpec
from tests.images.files import noise

NO_CROP = {"crop_scale_min": 1.0, "crop_scale_max": 1.0, "crop_ratio_min": 1.0,
           "crop_ratio_max": 1.0}  # fmt: skip


def spec(**changes: object) -> AugmentationSpec:
    return AugmentationSpec.model_validate(changes)


@pytest.mark.parametrize("kind", ["full", "autoaugment", "plain"])
def test_a_view_depends_on_its_seed_alone(kind: str) -> None:
    augmenter, image = Augmenter(spec(kind=kind, rotation=10.0), 20), noise(50, 40)
    first, other = augmenter(image, Random(1)), augmenter(image, Random(2))
    assert first.shape == (3, 20, 20)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, augmenter(image, Random(1)))
    assert not np.array_equal(first, other)


def test_with_all_strengths_zero_only_normalization_remains() -> None:
    image = noise(20, 20)
    augmenter = Augmenter(spec(flip=0.0, color_jitter=0.0, lighting=0.0, **NO_CROP), 20)
    expected = normalize(np.asarray(image), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    np.testing.assert_array_equal(augmenter(image, Random(0)), expected)


@pytest.mark.parametrize("size", [20, 60])
def test_evaluation_and_training_use_the_same_resize(size: int) -> None:
    image = noise(41, 41)
    view = Augmenter(spec(kind="plain", flip=0.0, **NO_CROP), size)(image, Random(0))
    expected = preprocess_image(image, Preprocessing.standard(size, center_crop=1.0))
    np.testing.assert_array_equal(view, expected)


def test_a_view_is_written_to_the_given_array() -> None:
    out = np.zeros((3, 16, 16), np.float32)
    result = Augmenter(spec(), 16)(noise(30, 30), Random(3), out=out)
    assert result is out
    np.testing.assert_array_equal(out, Augmenter(spec(), 16)(noise(30, 30), Random(3)))


def test_half_of_the_views_are_flipped() -> None:
    image = noise(16, 16)
    augmenter = Augmenter(spec(kind="plain", **NO_CROP), 16)
    straight = augmenter(image, Random(0), out=None)
    plain = Augmenter(spec(kind="plain", flip=0.0, **NO_CROP), 16)(image, Random(0))
    flips = 0
    for seed in range(400):
        view = augmenter(image, Random(seed))
        flipped = np.array_equal(view, plain[:, :, ::-1])
        assert flipped or np.array_equal(view, plain)
        flips += flipped
    assert straight.shape == plain.shape
    assert 150 < flips < 250


def test_crops_keep_the_stated_area_and_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes: list[tuple[float, float, float, float]] = []
    image = Image.new("RGB", (300, 200))

    def record(self: Image.Image, size: object, resample: object, box: object) -> Image.Image:
        boxes.append(box)  # type: ignore[arg-type]
        return self

    monkeypatch.setattr(Image.Image, "resize", record)
    random = Random(0)
    for _ in range(500):
        augment.random_resized_crop(image, 10, spec(crop_scale_min=0.2, crop_scale_max=0.5), random)
    areas = [(r - l) * (b - t) / 60_000 for l, t, r, b in boxes]  # noqa: E741
    ratios = [(r - l) / (b - t) for l, t, r, b in boxes]  # noqa: E741
    assert all(0 <= l < r <= 300 and 0 <= t < b <= 200 for l, t, r, b in boxes)  # noqa: E741
    assert 0.19 < min(areas) < 0.22
    assert 0.48 < max(areas) < 0.51
    assert 0.73 < min(ratios) < 0.78
    assert 1.28 < max(ratios) < 1.37
    # Uniform positions in both directions.
    for places in ([l / (300 - r + l) for l, _, r, _ in boxes],  # noqa: E741
                   [t / (200 - b + t) for _, t, _, b in boxes]):  # fmt: skip
        assert (min(places), max(places)) == (0, 1)
        assert np.mean(places) == pytest.approx(0.5, abs=4 * 0.29 / np.sqrt(500))


@pytest.mark.parametrize(
    ("size", "box"), [((300, 20), (136, 0, 163, 20)), ((20, 300), (0, 136, 20, 163))]
)
def test_if_no_crop_fits_it_is_the_largest_centered_one(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], box: tuple[int, ...]
) -> None:
    """27 x 20 has the allowed ratio (4 / 3) nearest to the image's."""
    boxes = []
    monkeypatch.setattr(Image.Image, "resize", lambda _self, *_, box: boxes.append(box))
    augment.random_resized_crop(Image.new("RGB", size), 10, spec(crop_scale_min=0.9), Random(0))
    assert boxes == [box]


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1)])
def test_images_without_a_fitting_crop_have_a_view(size: tuple[int, int]) -> None:
    view = Augmenter(spec(rotation=5.0), 16)(Image.new("RGB", size, "red"), Random(0))
    assert np.isfinite(view).all()


@pytest.mark.parametrize("factor", [0.0, 0.7, 1.0, 1.3, 2.0])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (augment.brightness, ImageEnhance.Brightness),
        (augment.contrast, ImageEnhance.Contrast),
        (augment.saturation, ImageEnhance.Color),
    ],
)
def test_color_changes_equal_pillow_s_own(ours, theirs, factor: float) -> None:  # type: ignore[no-untyped-def]
    image = noise(40, 30)
    expected = np.asarray(theirs(image).enhance(factor)).astype(int)
    assert np.abs(np.asarray(ours(image, factor)).astype(int) - expected).max() <= 1


def test_contrast_uses_the_rounded_mean_like_pillow() -> None:
    image = Image.new("RGB", (2, 1), (100, 100, 100))
    image.putpixel((1, 0), (101, 101, 101))  # the mean is 100.5
    flat = augment.contrast(image, 0.0)
    assert flat.getpixel((0, 0)) == flat.getpixel((1, 0)) == (101, 101, 101)
    expected = ImageEnhance.Contrast(image).enhance(0.0)
    np.testing.assert_array_equal(np.asarray(flat), np.asarray(expected))


def test_jitter_is_uniform_around_one_in_random_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float]] = []
    names = ("brightness", "contrast", "saturation")
    for name in names:
        monkeypatch.setattr(augment, name, lambda x, f, name=name: seen.append((name, f)) or x)
    random, image = Random(0), noise(4, 4)
    for _ in range(600):
        augment.color_jitter(image, 0.3, random)
    orders = [tuple(name for name, _ in seen[k : k + 3]) for k in range(0, len(seen), 3)]
    for order in itertools.permutations(names):
        assert orders.count(order) == pytest.approx(100, abs=40)
    for name in names:
        factors = [f for of, f in seen if of == name]
        assert (min(factors), max(factors)) == pytest.approx((0.7, 1.3), abs=0.01)
        assert np.mean(factors) == pytest.approx(1, abs=4 * 0.6 * 0.29 / np.sqrt(600))
    seen.clear()
    for _ in range(100):
        augment.color_jitter(image, 1.0, random)
    assert all(0 <= f <= 2 for _, f in seen)


@pytest.mark.parametrize("kind", ["full", "autoaugment", "plain"])
def test_each_kind_applies_its_steps_in_order(kind: str) -> None:
    image = noise(20, 20)
    augmenter = Augmenter(spec(kind=kind, flip=0.0), 20, mean=(0, 0, 0), std=(1, 1, 1))
    for seed in range(5):
        random, offset = Random(seed), np.zeros(3)
        view = augment.random_resized_crop(image, 20, spec(), random)
        if kind == "full":
            view = augment.color_jitter(view, 0.3, random)
            offset = augment.lighting(0.1, random)
        elif kind == "autoaugment":
            view = autoaugment(view, random)
        expected = np.clip(np.asarray(view) / 255 + offset, 0, 1).transpose(2, 0, 1)
        np.testing.assert_allclose(augmenter(image, Random(seed)), expected, atol=1e-6)


def test_lighting_has_the_published_components() -> None:
    """Krizhevsky et al. 2012."""
    assert augment.LIGHTING_VALUES.tolist() == [0.2175, 0.0188, 0.0045]
    assert augment.LIGHTING_VECTORS.tolist() == [
        [-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]
    ]  # fmt: skip
    # They are orthonormal.
    product = augment.LIGHTING_VECTORS.T @ augment.LIGHTING_VECTORS
    np.testing.assert_allclose(product, np.eye(3), atol=2e-4)


def test_lighting_has_the_stated_covariance() -> None:
    random = Random(0)
    offsets = np.array([augment.lighting(0.1, random) for _ in range(20_000)])
    vectors, values = augment.LIGHTING_VECTORS, augment.LIGHTING_VALUES
    expected = 0.01 * vectors @ np.diag(values**2) @ vectors.T
    np.testing.assert_allclose(np.cov(offsets.T), expected, rtol=0.05, atol=1e-7)


def test_lighting_is_added_before_the_clamp() -> None:
    image = Image.new("RGB", (4, 4), (255, 0, 128))
    augmenter = Augmenter(spec(flip=0.0, color_jitter=0.0, lighting=1.0, **NO_CROP), 4,
                          mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # fmt: skip
    views = np.array([augmenter(image, Random(seed))[:, 0, 0] for seed in range(50)])
    assert views.min() == 0.0
    assert views.max() == 1.0
    assert len(np.unique(views[:, 2])) > 40


def test_rotation_fills_corners_with_the_border_color() -> None:
    image = Image.new("RGB", (20, 20), (10, 20, 30))
    for degrees in (-30.0, 10.0, 45.0):
        turned = np.asarray(augment.rotate(image, degrees))
        assert np.abs(turned.astype(int) - (10, 20, 30)).max() <= 1
