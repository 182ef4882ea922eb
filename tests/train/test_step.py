"""The training step as a whole, on one worker."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from mindspore import Tensor

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.losses.objective import JointObjective
from tests.train.step_pool import StepPool
from tests.train.tiny import assert_same, batch, tiny_spec, tiny_step, weights

pytestmark = pytest.mark.mindspore

TRACE: dict[str, Any] = {"refresh": "trace", "frequency": 1, "w1": 0.04, "w2": 0.0005}


@pytest.mark.parametrize("kind", ["thor", "momentum", "adamw"])
def test_the_loss_falls(shared_step: StepPool, kind: str) -> None:
    step = shared_step(tiny_spec(kind))
    x, labels, ids = batch(0)
    losses = [step(x, labels, ids).loss for _ in range(25)]
    assert losses[-1] < 0.6 * losses[0]


def test_the_loss_record_has_the_steps_measurements(shared_step: StepPool) -> None:
    step = shared_step(tiny_spec(frequency=3))
    results, stop_agreed = [], []
    for i in range(4):
        results.append(step(*batch(i), stop=i == 2))
        stop_agreed.append(step.stop_agreed)
    assert [r.step for r in results] == [1, 2, 3, 4]
    assert [r.refreshed_layers for r in results] == [3, 0, 0, 3]
    assert stop_agreed == [False, False, True, False]
    last = results[-1]
    assert last.curvature_layers == 3
    # linear to 0 over 10 epochs of 4 steps; damping 0.1 * 0.5^(epoch / 10), epoch 1
    assert last.learning_rate == pytest.approx(0.05 * 0.9)
    assert last.damping == pytest.approx(0.1 * 0.5**0.1)
    assert last.loss == pytest.approx(
        0.5 * last.classification_loss + 0.5 * last.instance_loss, rel=1e-5
    )
    assert last.beta not in (0, 1.2)
    assert last.gem_p != 3.0


def test_the_trace_rule_decides_per_layer_at_growing_intervals(shared_step: StepPool) -> None:
    step = shared_step(tiny_spec(**TRACE))
    results = [step(*batch(i)) for i in range(9)]
    checked = [i for i, r in enumerate(results) if r.refreshed_layers + r.kept_layers]
    assert checked == [0, 1, 3, 7]  # 1, 2 and 4 steps on: an epoch has 4
    assert results[0].refreshed_layers == 3
    for earlier, r in itertools.pairwise(results):
        stopped_now = r.stopped_layers - earlier.stopped_layers
        assert 0 <= stopped_now <= r.kept_layers
        if r.step - 1 in checked:
            assert r.refreshed_layers + r.kept_layers == 3 - earlier.stopped_layers
        else:
            assert stopped_now == 0
    decided = results[1:]
    assert sum(r.refreshed_layers for r in decided) > 0
    assert sum(r.kept_layers for r in decided) > 0
    assert results[-1].stopped_layers == 1
    assert "trace" not in tiny_spec().optimizer.thor.refresh  # the default is the fixed frequency


def test_a_kept_layer_keeps_its_inverses(shared_step: StepPool) -> None:
    step = shared_step(tiny_spec(refresh="trace", frequency=1, w1=1e9, w2=0.0))
    step(*batch(0))
    before = {k: v for k, v in step.state().items() if k.endswith("_inverse")}
    assert step(*batch(1)).kept_layers == 3
    after = step.state()
    assert len(before) == 6
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)


def test_momentum_has_no_curvature(shared_step: StepPool) -> None:
    step = shared_step(tiny_spec("momentum"))
    result = step(*batch(0))
    assert (result.curvature_layers, result.refreshed_layers, result.damping) == (0, 0, 0)
    assert "no curvature" in step.curvature_table()


def test_the_table_lists_every_layer() -> None:
    table = tiny_step(tiny_spec()).curvature_table()
    for text in ("trunk.conv1", "trunk.conv2", "classifier", "5 x 27", "2 x 16", "3 layers"):
        assert text in table
    for text in ("trunk.bn1.(gamma, beta)", "pool.(p)", "classifier.(bias)"):
        (line,) = [line for line in table.splitlines() if line.startswith(text)]
        assert "excluded: " in line
    assert table.splitlines()[0].endswith("4 parameters with plain gradients")


@pytest.mark.parametrize("at", [1, 3])
def test_a_non_finite_step_changes_nothing(shared_step: StepPool, at: int) -> None:
    """Also if a refresh was due: it is deferred to the next step."""
    step = shared_step(tiny_spec(frequency=3))
    for i in range(at):
        step(*batch(i))
    before, state = weights(step), step.state()
    x, labels, ids = batch(at)
    x[0, 0, 0, 0] = np.nan
    result = step(x, labels, ids)
    assert result.skipped
    assert result.refreshed_layers == 0
    assert_same(weights(step), before)
    after = step.state()
    for name in ("step", "skipped_in_row", "skipped_total"):
        assert after.pop(name) == state.pop(name) + 1
    due = at % 3 == 0
    assert after.pop("refresh_due") == due
    state.pop("refresh_due")
    assert_same(after, state)
    following = step(*batch(at + 1))
    assert not following.skipped
    assert following.refreshed_layers == (3 if due else 0)


def test_the_noise_differs_by_step_and_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[tuple[int, ...]] = []
    noise = JointObjective.noise

    def watched(self: JointObjective, n: int, key: tuple[int, ...]) -> Tensor:
        keys.append(key)
        return noise(self, n, key)

    monkeypatch.setattr(JointObjective, "noise", watched)
    step = tiny_step(tiny_spec("momentum"))
    step._reducer.rank = 2
    for i in range(2):
        step(*batch(i))
    assert keys == [(11, 0, 2), (11, 1, 2)]  # seed, step, rank


def test_betas_own_rate_decays_like_the_learning_rate(shared_step: StepPool) -> None:
    step = shared_step(tiny_spec("momentum"))
    beta, rates = 1.2, []
    for i in range(5):
        result = step(*batch(i))
        moment = float(step.state()["momentum.instance.beta"])
        assert beta - result.beta == pytest.approx(
            0.1 * result.learning_rate / 0.05 * moment, rel=1e-3, abs=1e-6
        )
        beta, rates = result.beta, [*rates, result.learning_rate]
    assert abs(moment) > 0.1
    assert rates[-1] < 0.9 * rates[0]


def test_too_many_skipped_steps_in_a_row_end_the_run(shared_step: StepPool) -> None:
    step = shared_step(tiny_spec(max_skipped_steps=3))
    bad = batch(0)
    bad[0][:] = np.inf
    step(*bad)
    step(*bad)
    step(*batch(1))  # an applied step resets the count
    step(*bad)
    step(*bad)
    with pytest.raises(MultigrainError, match="3 steps in a row") as caught:
        step(*bad)
    assert caught.value.kind is ErrorKind.DIVERGED


def test_the_optimizer_s_options_reach_the_update() -> None:
    spec = tiny_spec(kl_clip=0.3, clip_norm=2.0)
    optimizer = spec.optimizer.model_copy(update={"momentum": 0.5, "weight_decay": 0.02})
    update = tiny_step(spec.model_copy(update={"optimizer": optimizer}))._update
    assert (update.momentum, update.weight_decay) == (0.5, 0.02)
    assert (update.kl_clip, update.clipped) == (0.3, True)


def test_clipping_bounds_the_global_norm(shared_step: StepPool) -> None:
    """With momentum and no decay the first update is lr times the clipped gradient."""
    spec = tiny_spec("momentum", clip_norm=0.01)
    optimizer = spec.optimizer.model_copy(update={"weight_decay": 0.0})
    step = shared_step(spec.model_copy(update={"optimizer": optimizer}))
    step(*batch(0))
    moments = [v for name, v in step.state().items() if name.startswith("momentum.")]
    norm = np.sqrt(sum((v.astype(np.float64) ** 2).sum() for v in moments))
    assert norm == pytest.approx(0.01, rel=1e-4)


def test_switching_to_evaluation_mode_does_not_affect_training(shared_step: StepPool) -> None:
    first, second = shared_step(tiny_spec()), shared_step(tiny_spec())
    for i in range(3):
        second._model.set_train(False)
        assert first(*batch(i)) == second(*batch(i))
    assert_same(weights(first), weights(second))
    assert np.abs(weights(first)["trunk.bn1.moving_mean"]).max() > 0
