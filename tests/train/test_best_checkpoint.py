"""The best checkpoint by a named metric."""

from __future__ import annotations

import pytest

from multigrain.train.loop import BestCheckpoint

pytestmark = pytest.mark.mindspore


def test_a_higher_accuracy_is_better_and_an_equal_one_is_not() -> None:
    best = BestCheckpoint("top1")
    assert best.update({"top1": 0.0, "loss": 9}, step=1)
    assert best.update({"top1": 0.5, "loss": 9}, step=2)
    assert not best.update({"top1": 0.5, "loss": 1}, step=3)
    assert (best.value, best.step) == (0.5, 2)


def test_a_lower_loss_is_better() -> None:
    best = BestCheckpoint("loss")
    assert best.update({"loss": 3.0}, step=5)
    assert not best.update({"loss": 4.0}, step=6)
    assert best.update({"loss": 2.0}, step=7)
    assert (best.value, best.step) == (2.0, 7)


def test_nan_is_never_the_best() -> None:
    best = BestCheckpoint("loss")
    assert not best.update({"loss": float("nan")}, step=1)
    assert best.update({"loss": 3.0}, step=2)
    assert not best.update({"loss": float("nan")}, step=3)
    assert (best.value, best.step) == (3.0, 2)
