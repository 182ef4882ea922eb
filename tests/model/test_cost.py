"""The work of a network, against published numbers."""

from __future__ import annotations

import pytest

from multigrain.model.cost import trunk_cost


# Designing Network Design Spaces (arXiv 2003.13678), table 4: 10^9 multiplications and 10^6
# activations for 224 x 224 pixels.
@pytest.mark.parametrize(
    ("trunk", "macs", "activations"),
    [("resnet50", 4.1, 11.1), ("resnet101", 7.8, 16.2), ("resnet152", 11.5, 22.6)],
)
def test_the_published_numbers(trunk: str, macs: float, activations: float) -> None:
    cost = trunk_cost(trunk, 224)
    assert cost.macs / 1e9 == pytest.approx(macs, abs=0.05)
    assert cost.activations / 1e6 == pytest.approx(activations, abs=0.05)


# torchvision's documentation: 10^9 multiplications, with the classifier.
@pytest.mark.parametrize(("trunk", "macs"), [("resnet18", 1.81), ("resnet34", 3.66)])
def test_torchvisions_numbers(trunk: str, macs: float) -> None:
    assert trunk_cost(trunk, 224).macs / 1e9 == pytest.approx(macs, abs=0.01)


def test_a_small_stem_keeps_the_resolution() -> None:
    # CIFAR's ResNet-18 has 0.56 * 10^9 multiplications for 32 pixels.
    assert trunk_cost("resnet18", 32, "small").macs / 1e9 == pytest.approx(0.56, abs=0.01)


# Largest resident memory (GiB) of a worker that trained with momentum and repeats of 3 on a CPU.
@pytest.mark.parametrize(
    ("trunk", "size", "batch", "gib"),
    [("resnet18", 64, 96, 1.35), ("resnet18", 128, 96, 2.03), ("resnet50", 96, 48, 2.47)],
)
def test_memory_is_about_what_was_measured(trunk: str, size: int, batch: int, gib: float) -> None:
    assert trunk_cost(trunk, size).step_bytes(batch) / 2**30 == pytest.approx(gib, rel=0.1)
