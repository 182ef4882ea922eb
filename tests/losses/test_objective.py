"""The weighted sum of the losses."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor

from multigrain.losses.instance import MarginLoss, TripletLoss
from multigrain.losses.objective import JointObjective, SmoothedCrossEntropy
from multigrain.specs.training import ObjectiveSpec

pytestmark = pytest.mark.mindspore

RNG = np.random.default_rng(0)
EMBEDDING = Tensor(RNG.random((6, 8)).astype(np.float32))
LOGITS = Tensor(RNG.standard_normal((6, 3)).astype(np.float32))
LABELS = Tensor(np.array([0, 0, 1, 1, 2, 2], np.int32))
INSTANCES = Tensor(np.array([3, 3, 5, 5, 9, 9], np.int32))


@pytest.mark.parametrize("kind", ["margin", "triplet"])
def test_joint_loss_is_the_weighted_sum(kind: str) -> None:
    objective = JointObjective(ObjectiveSpec(instance_loss=kind, classification_weight=0.3))
    joint, classification, instance = (
        float(x.asnumpy())
        for x in objective(EMBEDDING, LOGITS, LABELS, INSTANCES, objective.noise(6, (0, 0, 0)))
    )
    assert instance > 0
    assert joint == pytest.approx(0.3 * classification + 0.7 * instance, rel=1e-6)


@pytest.mark.parametrize("kind", ["margin", "triplet"])
def test_every_option_reaches_its_loss(kind: str) -> None:
    spec = ObjectiveSpec(instance_loss=kind, label_smoothing=0.2, margin=0.7, beta_init=0.9)
    objective = JointObjective(spec)
    noise = objective.noise(6, (0, 0, 0))
    _, classification, instance = (
        float(x.asnumpy()) for x in objective(EMBEDDING, LOGITS, LABELS, INSTANCES, noise)
    )
    smoothed = SmoothedCrossEntropy(0.2)(LOGITS, LABELS)
    assert classification == float(smoothed.asnumpy())
    if kind == "margin":
        expected = MarginLoss(0.7, 0.9)(EMBEDDING, INSTANCES, noise)
    else:
        expected = TripletLoss(0.7)(EMBEDDING, INSTANCES)
    assert instance == float(expected.asnumpy())
    assert objective.beta == pytest.approx(0.9 if kind == "margin" else 0)


def test_without_an_instance_loss_the_joint_loss_is_classification() -> None:
    objective = JointObjective(ObjectiveSpec(instance_loss="none"))
    joint, classification, instance = objective(
        EMBEDDING, LOGITS, LABELS, INSTANCES, objective.noise(6, (0, 0, 0))
    )
    assert float(joint.asnumpy()) == float(classification.asnumpy()) > 0
    assert float(instance.asnumpy()) == 0
    assert objective.beta == 0


def test_noise_depends_on_its_key_alone() -> None:
    objective = JointObjective(ObjectiveSpec())
    first = objective.noise(4, (1, 2, 0)).asnumpy()
    np.testing.assert_array_equal(first, objective.noise(4, (1, 2, 0)).asnumpy())
    for key in [(2, 2, 0), (1, 3, 0), (1, 2, 1)]:
        assert (first != objective.noise(4, key).asnumpy()).any()
