"""Steps of the joint loss with learned exponent and beta, against PyTorch."""

from __future__ import annotations

import mindspore
import numpy as np
import pytest
import torch
from mindspore import Tensor
from torch.nn import functional

from multigrain.losses.instance import (
    distances,
    l2_normalize,
    positive_pairs,
    same_image,
    sample_negatives,
)
from multigrain.losses.objective import JointObjective
from multigrain.model.multigrain import build_model
from multigrain.model.state import load_model_state
from multigrain.specs.training import TrainingSpec
from multigrain.train.step import TrainStep
from multigrain.weights.translate import translate
from tests.peers.figures import record
from tests.peers.names import pytorch_shapes
from tests.peers.networks import TorchResNet, gem
from tests.peers.seeded import images, seeded_state

pytestmark = pytest.mark.mindspore

CLASSES = 5
COPIES = np.repeat(np.arange(3), 2).astype(np.int32)
SPEC = TrainingSpec.model_validate(
    {
        "model": {"trunk": "resnet18", "gem_p": 3.0, "learn_gem_p": True},
        "objective": {
            "instance_loss": "margin", "classification_weight": 0.6, "beta_init": 0.9,
            "beta_learning_rate": 0.05,
        },
        "optimizer": {"kind": "momentum", "momentum": 0.8, "weight_decay": 0.01},
        "schedule": {"learning_rate": {"kind": "step", "init": 0.002}},
        "seed": 4,
    }
)  # fmt: skip


def margin_terms(embedding: torch.Tensor, beta: torch.Tensor, noise: Tensor) -> list[torch.Tensor]:
    """Hinges of every pair and of its negative as sampled by this package."""
    e = Tensor(embedding.detach().float().numpy())
    same = same_image(Tensor(COPIES, mindspore.int32))
    chosen = sample_negatives(
        distances(l2_normalize(e)), same, positive_pairs(same), noise, e.shape[1]
    ).asnumpy()
    unit = functional.normalize(embedding, dim=1)
    terms = []
    for i, j in ((i, j) for i in range(6) for j in range(6) if i != j and COPIES[i] == COPIES[j]):
        for other, sign in ((j, 1.0), (int(chosen[i, j]), -1.0)):
            d = ((unit[i] - unit[other]).pow(2).sum() + 1e-8).sqrt()
            terms.append(torch.relu(0.2 + sign * (d - beta)))
    return terms


def test_steps_of_the_joint_loss() -> None:
    state = seeded_state(pytorch_shapes("resnet18", CLASSES))
    net = build_model(SPEC.model, CLASSES)
    load_model_state(net, translate(state, "w").model | {"pool.p": np.float32(3.0)})
    net.set_train(True)
    objective = JointObjective(SPEC.objective)
    step = TrainStep(net, objective, SPEC, world=1, steps_per_epoch=10)

    theirs = TorchResNet("resnet18", CLASSES).train()
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    theirs.double()
    p = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    beta = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    sgd = torch.optim.SGD(
        [
            {"params": theirs.parameters(), "weight_decay": 0.01},
            {"params": [p]},
            # Beta has the published momentum, independent of the network's.
            {"params": [beta], "momentum": 0.9, "lr": 0.05},
        ],
        lr=0.002,
        momentum=0.8,
    )
    errors, moved = [], []
    for number in range(3):
        x = images(6, 64, seed=number)
        x = x[COPIES] + np.float32(0.5) * images(6, 64, seed=10 + number)
        labels = COPIES + 1
        result = step(x, labels, COPIES)
        sgd.zero_grad()
        embedding = gem(theirs.features(torch.from_numpy(x).double()), p)
        classification = functional.cross_entropy(
            theirs.fc(embedding), torch.from_numpy(labels).long()
        )
        noise = objective.noise(6, (SPEC.seed, number, 0))
        terms = margin_terms(embedding, beta, noise)
        active = sum(bool(t > 0) for t in terms)
        assert active > 0
        instance = torch.stack(terms).sum() / active
        loss = 0.6 * classification + 0.4 * instance
        loss.backward()
        sgd.step()
        pairs = (
            (result.loss, loss), (result.classification_loss, classification),
            (result.instance_loss, instance), (result.gem_p, p), (result.beta, beta),
        )  # fmt: skip
        errors += [abs(a - b.item()) / abs(b.item()) for a, b in pairs]
        moved.append((p.item(), beta.item()))
    record("3 joint steps: loss, classification, instance, p, beta of each", *errors)
    assert abs(moved[-1][0] - 3.0) > 1e-4
    assert abs(moved[-1][1] - 0.9) > 1e-3
    assert max(errors) <= 1e-4
