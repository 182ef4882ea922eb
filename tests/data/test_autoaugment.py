"""AutoAugment: the published policy, strengths and probabilities."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from multigrain.data import augment
from tests.images.files import noise


def test_every_operation_changes_the_image_and_keeps_its_size() -> None:
    image = noise(32, 24)
    names = {name for pair in augment.AUTOAUGMENT_POLICY for name, _, _ in pair}
    assert len(augment.AUTOAUGMENT_POLICY) == 25
    for name in names:
        changed = augment.apply_operation(image, name, 9, 1.0)
        assert changed.size == image.size
        assert changed.mode == "RGB"
        assert not np.array_equal(np.asarray(changed), np.asarray(image)), name


def test_the_policy_is_the_published_one() -> None:
    """Against torchvision's policy, which omits magnitudes without an effect."""
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
        for pair in augment.AUTOAUGMENT_POLICY
    ]
    assert ours == [" ".join(pair.split()) for pair in published.split(",")]


def test_operations_have_the_stated_range() -> None:
    gray = Image.new("RGB", (4, 4), (200, 200, 200))
    assert augment.apply_operation(gray, "solarize", 9, 1.0).getpixel((0, 0)) == (55, 55, 55)
    assert augment.apply_operation(gray, "solarize", 0, 1.0).getpixel((0, 0)) == (200, 200, 200)
    assert augment.apply_operation(gray, "posterize", 9, 1.0).getpixel((0, 0)) == (192, 192, 192)
    assert augment.apply_operation(gray, "posterize", 0, 1.0).getpixel((0, 0)) == (200, 200, 200)


@pytest.mark.parametrize(("magnitude", "share"), [(0, 0.0), (3, 1 / 3), (9, 1.0)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_signed_operations_reach_the_stated_strength(
    magnitude: int, share: float, sign: float
) -> None:
    image = noise(60, 40)
    turned = augment.apply_operation(image, "rotate", magnitude, sign)
    expected = image.rotate(sign * 30 * share, fillcolor=(128, 128, 128))
    np.testing.assert_array_equal(np.asarray(turned), np.asarray(expected))
    enhancers = {"color": ImageEnhance.Color, "contrast": ImageEnhance.Contrast,
                 "sharpness": ImageEnhance.Sharpness}  # fmt: skip
    for name, enhancer in enhancers.items():
        found = np.asarray(augment.apply_operation(image, name, magnitude, sign)).astype(int)
        expected = enhancer(image).enhance(1 + sign * 0.9 * share)
        assert np.abs(found - np.asarray(expected)).max() <= 1
    # Pixel values are column numbers: a row is shifted by at most 0.3 of its number.
    columns = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 40, 0).repeat(3, 2)
    sheared = augment.apply_operation(Image.fromarray(columns), "shear_x", magnitude, sign)
    for row in (5, 20, 39):
        moved = np.asarray(sheared)[row, 16:48, 0] - np.arange(16.0, 48)
        np.testing.assert_allclose(moved, sign * 0.3 * share * (row + 0.5), atol=1.01)


def test_operations_have_the_tables_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = (
        (("posterize", 0.2, 1), ("rotate", 0.9, 2)),
        (("solarize", 0.0, 3), ("color", 1.0, 4)),
    )
    seen: list[tuple[str, int, float]] = []
    monkeypatch.setattr(augment, "AUTOAUGMENT_POLICY", policy)
    monkeypatch.setattr(
        augment, "apply_operation", lambda image, *operation: seen.append(operation) or image
    )
    random, image = Random(0), noise(4, 4)
    for _ in range(2000):
        augment.autoaugment(image, random)
    for name, magnitude, expected in [
        ("posterize", 1, 200), ("rotate", 2, 900), ("solarize", 3, 0), ("color", 4, 1000)
    ]:  # fmt: skip
        of_name = [operation for operation in seen if operation[0] == name]
        assert len(of_name) == pytest.approx(expected, abs=100 if expected else 0)
        assert {strength for _, strength, _ in of_name} <= {magnitude}
    assert np.mean([sign for _, _, sign in seen]) == pytest.approx(0, abs=4 / np.sqrt(len(seen)))
