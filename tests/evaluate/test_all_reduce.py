"""All-reduce in messages of limited size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from mindspore import Tensor, ops

from multigrain.evaluate import all_reduce
from multigrain.evaluate.all_reduce import AllReduce

pytestmark = pytest.mark.mindspore


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Message lengths between two workers with equal arrays; at most five elements."""
    sent: list[int] = []

    def fake_all_reduce() -> Callable[[Tensor], Tensor]:
        return lambda x: sent.append(x.size) or 2 * x  # type: ignore[func-returns-value]

    monkeypatch.setattr(ops, "AllReduce", fake_all_reduce)
    monkeypatch.setattr(all_reduce, "_MESSAGE_ELEMENTS", 5)
    return sent


def test_an_array_longer_than_a_message_is_summed(messages: list[int]) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(AllReduce(2).sum(array), 2 * array)
    assert messages == [5, 5, 2]
    np.testing.assert_array_equal(AllReduce(2).sum(array.T), 2 * array.T)  # not contiguous


def test_any_is_true_if_true_on_one_worker(messages: list[int]) -> None:
    assert (AllReduce(2).any(True), AllReduce(2).any(False)) == (True, False)
    assert messages == [1, 1]
    assert (AllReduce(1).any(True), AllReduce(1).any(False)) == (True, False)
    assert len(messages) == 2
