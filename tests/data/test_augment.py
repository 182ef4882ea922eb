"""Augmentation: strengths, ranges, and that a seed decides everything."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from multigrain.data import augment, autoaugment
from multigrain.data.augment import Augmenter
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import normalize, preprocess_image
from multigrain.spec.training import AugmentationSpec
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


def test_without_any_strength_only_normalisation_is_left() -> None:
    image = noise(20, 20)
    augmenter = Augmenter(spec(flip=0.0, color_jitter=0.0, lighting=0.0, **NO_CROP), 20)
    expected = normalize(np.asarray(image), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    np.testing.assert_array_equal(augmenter(image, Random(0)), expected)


@pytest.mark.parametrize("size", [20, 60])
def test_evaluation_scales_pictures_as_training_does(size: int) -> None:
    image = noise(41, 41)
    view = Augmenter(spec(kind="plain", flip=0.0, **NO_CROP), size)(image, Random(0))
    expected = preprocess_image(image, Preprocessing.standard(size, center_crop=1.0))
    np.testing.assert_array_equal(view, expected)


def test_a_view_is_written_where_asked() -> None:
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


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1)])
def test_pictures_without_a_fitting_crop_still_give_a_view(size: tuple[int, int]) -> None:
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
def test_colour_changes_equal_pillow_s_own(ours, theirs, factor: float) -> None:  # type: ignore[no-untyped-def]
    image = noise(40, 30)
    expected = np.asarray(theirs(image).enhance(factor)).astype(int)
    assert np.abs(np.asarray(ours(image, factor)).astype(int) - expected).max() <= 1


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


def test_rotation_fills_corners_with_the_border_s_colour() -> None:
    image = Image.new("RGB", (20, 20), (10, 20, 30))
    for degrees in (-30.0, 10.0, 45.0):
        turned = np.asarray(augment.rotate(image, degrees))
        assert np.abs(turned.astype(int) - (10, 20, 30)).max() <= 1


def test_every_operation_of_the_policy_changes_the_picture_and_keeps_its_size() -> None:
    image = noise(32, 24)
    names = {name for pair in autoaugment.POLICY for name, _, _ in pair}
    assert len(autoaugment.POLICY) == 25
    for name in names:
        changed = autoaugment.apply(image, name, 9, 1.0)
        assert changed.size == image.size
        assert changed.mode == "RGB"
        assert not np.array_equal(np.asarray(changed), np.asarray(image)), name


def test_the_policy_is_the_published_one() -> None:
    """Against torchvision's transcription of the table, which has no magnitude where none acts."""
    published = """
        posterize 0.4 8 rotate 0.6 9, solarize 0.6 5 autocontrast 0.6 -,
        equalize 0.8 - equalize 0.6 -,
        posterize 0.6 7 posterize 0.6 6, equalize 0.4 - solarize 0.2 4, equalize 0.4 - rotate 0.8 8,
        solarize 0.6 3 equalize 0.6 -, posterize 0.8 5 equalize 1.0 -, rotate 0.2 3 solarize 0.6 8,
        equalize 0.6 - posterize 0.4 6, rotate 0.8 8 color 0.4 0, rotate 0.4 9 equalize 0.6 -,
        equalize 0.0 - equalize 0.8 -, invert 0.6 - equalize 1.0 -, color 0.6 4 contrast 1.0 8,
        rotate 0.8 8 color 1.0 2, color 0.8 8 solarize 0.8 7, sharpness 0.4 7 invert 0.6 -,
        shear_x 0.6 5 equalize 1.0 -, color 0.4 0 equalize 0.6 -, equalize 0.4 - solarize 0.2 4,
        solarize 0.6 5 autocontrast 0.6 -, invert 0.6 - equalize 1.0 -, color 0.6 4 contrast 1.0 8,
        equalize 0.8 - equalize 0.6 -"""
    without = {"autocontrast", "equalize", "invert"}
    ours = [
        " ".join(f"{name} {p} {'-' if name in without else m}" for name, p, m in pair)
        for pair in autoaugment.POLICY
    ]
    assert ours == [" ".join(pair.split()) for pair in published.split(",")]


def test_operations_have_the_stated_range() -> None:
    grey = Image.new("RGB", (4, 4), (200, 200, 200))
    assert autoaugment.apply(grey, "solarize", 9, 1.0).getpixel((0, 0)) == (55, 55, 55)
    assert autoaugment.apply(grey, "solarize", 0, 1.0).getpixel((0, 0)) == (200, 200, 200)
    assert autoaugment.apply(grey, "posterize", 9, 1.0).getpixel((0, 0)) == (192, 192, 192)
    assert autoaugment.apply(grey, "posterize", 0, 1.0).getpixel((0, 0)) == (200, 200, 200)
