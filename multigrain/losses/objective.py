"""The joint loss: lambda * classification + (1 - lambda) * instance."""

from __future__ import annotations

import mindspore
import numpy as np
from mindspore import Tensor, nn, ops

from multigrain.losses.classification import SmoothedCrossEntropy
from multigrain.losses.margin import MarginLoss
from multigrain.losses.triplet import TripletLoss
from multigrain.spec.training import ObjectiveSpec


class JointObjective(nn.Cell):
    """(embedding, logits, labels, instances, noise) -> (joint, classification, instance).

    Embedding (N, C) and logits (N, K) float32; labels and instances (N,) int32; noise (N, N)
    standard Gumbel noise of :meth:`noise`, which only the margin loss reads. All three results
    are float32 scalars. With ``instance_loss: none`` the joint loss is the classification loss
    itself, whatever the weight.
    """

    def __init__(self, spec: ObjectiveSpec) -> None:
        super().__init__()
        self.classification = SmoothedCrossEntropy(spec.label_smoothing)
        self.kind = spec.instance_loss
        self.weight = spec.classification_weight
        if self.kind == "margin":
            self.instance = MarginLoss(spec.margin, spec.beta_init)
        elif self.kind == "triplet":
            self.instance = TripletLoss(spec.margin)

    def construct(
        self, embedding: Tensor, logits: Tensor, labels: Tensor, instances: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        classification = self.classification(logits, labels)
        if self.kind == "none":
            return classification, classification, ops.zeros_like(classification)
        if self.kind == "margin":
            instance = self.instance(embedding, instances, noise)
        else:
            instance = self.instance(embedding, instances)
        joint = self.weight * classification + (1.0 - self.weight) * instance
        return joint, classification, instance

    def noise(self, batch: int, key: tuple[int, ...]) -> Tensor:
        """The step's sampling noise, a pure function of ``key`` (seed, step, rank).

        Made on the host, so that a resumed run draws what the uninterrupted one would have
        drawn, on every kind of device.
        """
        if self.kind != "margin":
            return Tensor(np.zeros((1, 1), np.float32))
        rng = np.random.default_rng(list(key))
        return Tensor(rng.gumbel(size=(batch, batch)).astype(np.float32))

    @property
    def beta(self) -> float:
        """The margin loss's boundary; 0 where there is none."""
        return float(self.instance.beta.asnumpy()) if self.kind == "margin" else 0.0


def objective_parameters(objective: JointObjective) -> list[mindspore.Parameter]:
    """beta, where it is learned."""
    return list(objective.trainable_params())
