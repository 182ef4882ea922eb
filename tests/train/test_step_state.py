"""Resuming from a step's state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.model.state import load_model_state
from tests.train.step_pool import StepPool
from tests.train.tiny import assert_same, batch, tiny_spec, tiny_step, weights

pytestmark = pytest.mark.mindspore

TRACE: dict[str, Any] = {"refresh": "trace", "frequency": 1, "w1": 0.04, "w2": 0.0005}
OPTIONS: dict[str, Any] = {"pi_correction": True, "factor_average": 0.9, "kl_clip": 1e-3}


@pytest.mark.parametrize(
    ("kind", "at", "thor"),
    [
        ("thor", 3, {}),
        ("thor", 4, {}),
        ("momentum", 4, {}),
        ("adamw", 4, {}),
        ("thor", 2, TRACE),
        ("thor", 5, TRACE | {"w2": 0.0} | OPTIONS),
    ],
)
def test_resuming_from_a_state_equals_an_uninterrupted_run(
    shared_step: StepPool, kind: str, at: int, thor: dict[str, Any]
) -> None:
    spec = tiny_spec(kind, **thor)
    whole = shared_step(spec)
    for i in range(at):
        whole(*batch(i))
    saved_model, saved_state = weights(whole), whole.state()
    rest = [whole(*batch(i)) for i in range(at, 8)]
    if thor:
        assert any(r.kept_layers for r in rest)  # the rule's state has an effect

    resumed = shared_step(spec)
    resumed(*batch(99))  # leaves different values everywhere
    load_model_state(resumed._model, saved_model)
    resumed.load_state(saved_state)
    assert [resumed(*batch(i)) for i in range(at, 8)] == rest
    assert_same(weights(resumed), weights(whole))
    assert_same(resumed.state(), whole.state())


def test_a_run_resumed_after_a_skipped_step_has_its_counters(shared_step: StepPool) -> None:
    """Deferred refresh, consecutive skipped steps and saved statistics."""
    spec = tiny_spec(frequency=3, max_skipped_steps=3)
    bad = batch(0)
    bad[0][:] = np.nan
    before = shared_step(spec)
    for i in range(3):
        before(*batch(i))
    assert before(*bad).skipped
    saved_model, saved_state = weights(before), before.state()

    resumed = shared_step(spec)
    load_model_state(resumed._model, saved_model)
    resumed.load_state(saved_state)
    assert resumed(*batch(4)).refreshed_layers == 3
    load_model_state(resumed._model, saved_model)
    resumed.load_state(saved_state)
    assert_same(resumed.state(), saved_state)  # the refresh is due again
    assert resumed(*bad).skipped_total == 2
    assert_same(weights(resumed), saved_model)
    with pytest.raises(MultigrainError, match="3 steps in a row"):
        resumed(*bad)


def test_a_state_of_another_model_is_refused() -> None:
    state = tiny_step(tiny_spec("momentum")).state()
    with pytest.raises(MultigrainError, match="curvature") as caught:
        tiny_step(tiny_spec("thor")).load_state(state)
    assert caught.value.kind is ErrorKind.CHECKPOINT
